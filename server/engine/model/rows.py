"""A batch as the rows of a step: where each sequence's tokens lie, and which adapters work on them.

Decodes follow each other with the same sequences: what depends on these alone is taken from the step before.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import attrgetter

import numpy as np

from peftserve.kernels.attention.layout import SpanTable
from peftserve.kernels.bypass.layout import Segment
from peftserve.kernels.integers import Ints

from ..scheduling.batch import Batch, Chunk, Lineup
from ..scheduling.sequence import Lease
from ..scheduling.sequence import Sequence as EngineSequence

_pages, _lease = attrgetter("pages"), attrgetter("lease")


@dataclass(slots=True)
class StepRows:
    """A batch as consecutive rows, those of each span after those of the one before.

    sequences, leases: of each span. starts, counts: (spans,), the position of its first token, and how many.

    offsets, logit_offsets: where each span's rows begin, and the end of the last, among all rows and among those whose
    logits are wanted. tokens, logits: segments over these and those. one_each: every span is one row, and its logits
    are wanted, as in a decode. lineup: of the batch.
    """

    lineup: Lineup
    sequences: tuple[EngineSequence, ...]
    leases: tuple[Lease | None, ...]
    starts: Ints
    counts: Ints
    attention: SpanTable
    offsets: list[int]
    logit_offsets: list[int]
    tokens: Sequence[Segment]
    logits: Sequence[Segment]
    one_each: bool

    def __len__(self) -> int:
        return self.offsets[-1]


class RunningRows:
    """The rows of the last step, of which those of the next one take what has not changed."""

    def __init__(self) -> None:
        self._last = _rows(Batch())

    def rows_of(self, batch: Batch) -> StepRows:
        """Lay a batch out as rows."""
        goes_on = batch.only_decodes and batch.lineup is self._last.lineup
        self._last = _one_later(self._last, batch.ends - 1) if goes_on else _rows(batch)
        return self._last


def _one_later(last: StepRows, starts: Ints) -> StepRows:
    """Return the rows of a step in which the same sequences decode one more token each."""
    row, rows, *_ = last.attention.columns
    table = SpanTable(row, rows, starts + 1, list(map(_pages, last.sequences)))
    return replace(last, starts=starts, attention=table)


def _rows(batch: Batch) -> StepRows:
    spans, sequences = batch.chunks, batch.lineup.sequences
    starts = np.array([span.start for span in spans], dtype=np.int64)
    counts = np.array([span.num_tokens for span in spans], dtype=np.int64)
    logits = [span.num_logit_rows for span in spans]
    one_each = bool((counts == 1).all()) and logits.count(1) == len(logits)
    offsets = [0, *counts.cumsum().tolist()]
    logit_offsets = list(accumulate(logits, initial=0))
    tokens = segments_of(spans, offsets)
    return StepRows(
        lineup=batch.lineup,
        sequences=sequences,
        leases=tuple(map(_lease, sequences)),
        starts=starts,
        counts=counts,
        attention=SpanTable(
            np.array(offsets[:-1], dtype=np.int64), counts, starts + counts, list(map(_pages, sequences))
        ),
        offsets=offsets,
        logit_offsets=logit_offsets,
        tokens=tokens,
        logits=tokens if one_each else segments_of(spans, logit_offsets),
        one_each=one_each,
    )


def segments_of(spans: Sequence[Chunk], offsets: Sequence[int]) -> list[Segment]:
    """Make a segment for each run of neighbouring spans with the same adapters; several where they are a mixture.

    offsets: where the rows of each span begin. They are for its last tokens, where only some have a row.
    Rows before the token from which an adapter is active have no segment: it begins there, and no kernel has a gate.
    """
    runs: list[tuple[Lease, int, int]] = []
    for span, first, end in zip(spans, offsets, offsets[1:], strict=False):
        lease = span.sequence.lease
        if lease is None or not lease.slots:
            continue
        begin = max(first, end - max(span.end - span.sequence.active_from, 0))
        if begin == end:
            continue
        if runs and runs[-1][2] == begin and _alike(runs[-1][0], lease):
            runs[-1] = (lease, runs[-1][1], end)
        else:
            runs.append((lease, begin, end))
    return [
        Segment(slot, weight, begin, end)
        for lease, begin, end in runs
        for slot, weight in zip(lease.slots, lease.weights, strict=True)
    ]


def _alike(one: Lease, other: Lease) -> bool:
    return one is other or (one.slots == other.slots and one.weights == other.weights)
