"""What is known of an adapter once it compiled against the base: the part of its card that does not change.

Compilers make it, the registry keeps it, the router judges mixtures by it, the API shows it. Knows no names, no torch.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import msgspec


class FactsLike(Protocol):
    """Anything with these fields: `AdapterFacts`, or the message in which they cross from the engine."""

    @property
    def method(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def primitives(self) -> Mapping[str, int]: ...
    @property
    def sites(self) -> int: ...
    @property
    def consumed(self) -> int: ...
    @property
    def exclusive(self) -> Sequence[str]: ...
    @property
    def num_tasks(self) -> int: ...
    @property
    def virtual_tokens(self) -> int: ...
    @property
    def vocabulary(self) -> int: ...
    @property
    def inputs(self) -> Sequence[str]: ...
    @property
    def outputs(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class AdapterFacts:
    """method: PEFT's name (`LORA`). rank: the largest over all sites. num_bytes: of the compiled tensors.

    primitives: primitive to number of sites; beside those of modules `kv_prefix`, `side_attention` and `gate`.
    sites: number of modules that it changes. consumed: number of tensors of the checkpoint, each of which is served.
    exclusive: see `Bypass`. num_tasks: 0 for a method without tasks. virtual_tokens: positions before the prompt's.
    vocabulary: tokens that it knows, where those are more than the base's; else 0.
    inputs: modules whose input it changes. outputs: those whose output it multiplies or replaces. Of both the names,
        `*` for the number of a layer.
    """

    method: str
    rank: int
    num_bytes: int
    primitives: Mapping[str, int]
    sites: int
    consumed: int
    # Rows of the registry may be older than the fields from here on.
    exclusive: tuple[str, ...] = ()
    num_tasks: int = 0
    virtual_tokens: int = 0
    vocabulary: int = 0
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, facts: FactsLike) -> "AdapterFacts":
        return cls(
            method=facts.method,
            rank=facts.rank,
            num_bytes=facts.num_bytes,
            primitives=dict(facts.primitives),
            sites=facts.sites,
            consumed=facts.consumed,
            exclusive=tuple(facts.exclusive),
            num_tasks=facts.num_tasks,
            virtual_tokens=facts.virtual_tokens,
            vocabulary=facts.vocabulary,
            inputs=tuple(facts.inputs),
            outputs=tuple(facts.outputs),
        )

    @classmethod
    def from_json(cls, text: str) -> "AdapterFacts":
        """Of this release, of an older or a newer one. Raises ValueError for any other text."""
        return cls.of(msgspec.json.decode(text, type=cls))

    def to_json(self) -> str:
        return json.dumps(asdict(self))
