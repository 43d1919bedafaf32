"""What the first rank tells the others, and what they answer: structs over a pipe, each encoded once for all ranks."""

from typing import Any

import msgspec


class Begin(msgspec.Struct, array_like=True):
    """A sequence whose prompt runs, from the start or anew. pages: all of them. The rest is as in `Sequence`."""

    slots: list[int]
    weights: list[float]
    active_from: int
    num_prompt: int
    scores_prompt: bool
    pages: list[int]


class StepChunk(msgspec.Struct, array_like=True):
    """A chunk of a step. number: of its sequence. token_ids: that it runs. fill: as in `Chunk`.

    begin: where the chunk is of a prompt; None in a decode, for which `pages` are those that have been added.
    """

    number: int
    start: int
    token_ids: list[int]
    samples: bool
    fill: int | None = None
    begin: Begin | None = None
    pages: list[int] = []


class Step(msgspec.Struct, array_like=True, tag=True):
    """A step to run. ended: numbers of sequences that run no more."""

    chunks: list[StepChunk]
    ended: list[int]


class Load(msgspec.Struct, array_like=True, tag=True):
    """Bring an adapter's part to element `start` of the arena, for a slot. folder: of its files."""

    key: str
    folder: str
    slot: int
    start: int


class Attach(msgspec.Struct, array_like=True, tag=True):
    """Let what was loaded for a slot serve it."""

    slot: int


class Detach(msgspec.Struct, array_like=True, tag=True):
    slot: int


class Forget(msgspec.Struct, array_like=True, tag=True):
    """Drop an adapter from host memory."""

    digest: str


class Stop(msgspec.Struct, array_like=True, tag=True):
    """End the process."""


Told = Step | Load | Attach | Detach | Forget | Stop


class Loaded(msgspec.Struct, array_like=True, tag=True):
    """An adapter's part is on its device. error: why it is not; None if it is."""

    slot: int
    key: str
    error: str | None = None


encode = msgspec.msgpack.encode
decode_told: Any = msgspec.msgpack.Decoder(Told).decode
decode_loaded: Any = msgspec.msgpack.Decoder(Loaded).decode
