"""The hidden states of a prompt pooled to one vector, chunk by chunk, on the device and in float32.

A sequence keeps what its chunks so far have come to. One that begins its prompt again begins anew.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from ...wire.messages import PoolingKind
from ..scheduling.batch import Batch, Chunk
from ..scheduling.sequence import Sequence
from .hidden_states import Reader

Pool = Callable[[torch.Tensor | None, torch.Tensor, int], torch.Tensor]
"""From what the chunks before came to, a chunk's rows (rows, width) and the prompt's length to what they come to."""


def mean(before: torch.Tensor | None, rows: torch.Tensor, total: int) -> torch.Tensor:
    """Return the sum over all rows so far, divided by the length of the whole: (width,) float32."""
    part = rows.sum(0, dtype=torch.float32) / total
    return part if before is None else before + part


def last(before: torch.Tensor | None, rows: torch.Tensor, total: int) -> torch.Tensor:
    """Return the last row: (width,) float32."""
    return rows[-1].float()


POOLS: dict[PoolingKind, Pool] = {"mean": mean, "last": last}


def check_kind(kind: str) -> None:
    """Raise ValueError if there is no such kind of pooling."""
    if kind not in [*POOLS]:  # a list, as what was given may have no hash
        raise ValueError(f"there is no pooling {kind!r}: it is one of {', '.join(POOLS)}")


def readers_of(batch: Batch, offsets: list[int]) -> Mapping[int | None, Reader]:
    """Return what pools the step's rows, by the layer whose output it takes; empty where nothing is to be pooled.

    offsets: where the rows of each chunk begin.
    """
    places: dict[int | None, list[tuple[Chunk, int]]] = {}
    for chunk, offset in zip(batch.chunks if any(map(is_pooled, batch.prefills)) else (), offsets, strict=False):
        if chunk.sequence.pooling is not None and is_pooled(chunk):
            places.setdefault(chunk.sequence.pooling.layer, []).append((chunk, offset))
    return {layer: partial(_take_all, found) for layer, found in places.items()}


def is_pooled(chunk: Chunk) -> bool:
    """Return whether the chunk has tokens of a prompt that is pooled."""
    return chunk.sequence.pooling is not None and chunk.start < chunk.sequence.num_prompt


def ends_pooling(chunk: Chunk) -> bool:
    """Return whether the chunk has the last of a prompt that is pooled."""
    return is_pooled(chunk) and chunk.end >= chunk.sequence.num_prompt


def _take_all(chunks: list[tuple[Chunk, int]], states: torch.Tensor) -> None:
    for chunk, offset in chunks:
        count = min(chunk.end, chunk.sequence.num_prompt) - chunk.start
        _take(chunk.sequence, states[offset : offset + count], begins=chunk.start == chunk.sequence.num_virtual)


def _take(sequence: Sequence, rows: torch.Tensor, *, begins: bool) -> None:
    assert sequence.pooling is not None
    before = None if begins else sequence.pooled
    sequence.pooled = POOLS[sequence.pooling.kind](before, rows, len(sequence.prompt))
