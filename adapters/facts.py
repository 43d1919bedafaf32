"""The facts of an adapter: what is known of it once it has been compiled against the base, and never changes.

One struct from end to end: the compiler makes it, it crosses from the engine as it is, the registry stores it as JSON,
the router judges mixtures by it, and the HTTP card is written from it. Knows no names and no torch.
"""

from collections.abc import Mapping

import msgspec


class AdapterFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """The properties of one adapter on this base.

    method: PEFT's name (`LORA`). rank: the largest over all sites; 0 without a low-rank term.
    num_bytes: size of the compiled tensors; of an adapter that an engine has inspected, of its blob in device memory.
    primitives: primitive's kind to number of sites; `kv_prefix`, `side_attention` and `gate` count what is at no site.
    sites: number of modules that it changes. consumed: number of tensors in the checkpoint, each of which is served.
    exclusive: see `Bypass`. num_tasks: 0 for a method without tasks.
    virtual_tokens: positions that it takes before the prompt.
    vocabulary: size of its vocabulary where that is not as large as the base's; else 0.
    inputs: modules whose input it changes. outputs: modules whose output it multiplies or replaces. Both by name, with
        `*` for the number of a layer.
    unused: modules that it has tensors for and that change nothing, by name as above: a vision tower's, which no text
        passes, and convolutions that the model never calls.
    file_bytes: size of its files; of an adapter in the library.
    notes: what of its files has no effect here, as it has none in PEFT, in sentences.
    """

    method: str
    rank: int
    num_bytes: int
    primitives: Mapping[str, int]
    sites: int
    consumed: int
    # Registries of older releases lack the fields from here on.
    exclusive: tuple[str, ...] = ()
    num_tasks: int = 0
    virtual_tokens: int = 0
    vocabulary: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    file_bytes: int = 0
    notes: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, text: str) -> "AdapterFacts":
        """Read what this release, an older or a newer one has stored. Raises ValueError for any other text."""
        return msgspec.json.decode(text, type=cls)

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()
