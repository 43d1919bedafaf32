"""A batch as the rows of a step: where each sequence's tokens lie, and which adapters work on them.

Decodes follow each other with the same sequences: what depends on these alone is taken from the step before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import attrgetter

import numpy as np

from peftserve.kernels.attention import Ints, SpanTable
from peftserve.kernels.layout import Segment

from ..scheduling.batch import Span
from ..scheduling.sequence import Lease
from ..scheduling.sequence import Sequence as EngineSequence

_of_span = attrgetter("sequence", "start", "num_tokens", "samples")
_pages, _lease = attrgetter("pages"), attrgetter("lease")


@dataclass(slots=True)
class StepRows:
    """sequences, leases: of each span. starts, counts: (spans,), the position of its first token, and how many.

    offsets, logit_offsets: where each span's rows begin, and the end of the last, among all rows and among those whose
    logits are wanted. tokens, logits: segments over these and those. one_each: every span is one row, and its logits
    are wanted, as in a decode.
    """

    spans: Sequence[Span]
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
    def __init__(self) -> None:
        self._last = _rows((), (), (), (), ())
        self._sampled = False  # whether all of its spans were: then no prompt goes on

    def rows_of(self, spans: Sequence[Span]) -> StepRows:
        sequences, starts, counts, samples = zip(*map(_of_span, spans), strict=True) if spans else ((),) * 4
        leases, last = tuple(map(_lease, sequences)), self._last
        single, sampled = counts.count(1) == len(counts), all(samples)
        one_each = single and (sampled or all(span.num_logit_rows == 1 for span in spans))
        before, self._sampled = self._sampled, sampled
        alike = sequences == last.sequences and leases == last.leases
        if one_each and sampled and last.one_each and before and alike:
            self._last = _one_later(last, spans, np.array(starts, dtype=np.int64))
        else:
            self._last = _rows(spans, sequences, leases, starts, counts, one_each=one_each)
        return self._last


def _one_later(last: StepRows, spans: Sequence[Span], starts: Ints) -> StepRows:
    """The rows of a step of the same sequences. An adapter that begins to work within a prompt works by now."""
    row, rows, *_ = last.attention.columns
    table = SpanTable(row, rows, starts + 1, list(map(_pages, last.sequences)))
    return StepRows(
        spans=spans,
        sequences=last.sequences,
        leases=last.leases,
        starts=starts,
        counts=last.counts,
        attention=table,
        offsets=last.offsets,
        logit_offsets=last.logit_offsets,
        tokens=last.tokens,
        logits=last.logits,
        one_each=True,
    )


def _rows(
    spans: Sequence[Span],
    sequences: tuple[EngineSequence, ...],
    leases: tuple[Lease | None, ...],
    starts: Sequence[int],
    counts: Sequence[int],
    *,
    one_each: bool = False,
) -> StepRows:
    first, rows = np.array(starts, dtype=np.int64), np.array(counts, dtype=np.int64)
    offsets = list(accumulate(counts, initial=0))
    logit_offsets = offsets if one_each else list(accumulate((span.num_logit_rows for span in spans), initial=0))
    table = SpanTable(np.array(offsets[:-1], dtype=np.int64), rows, first + rows, list(map(_pages, sequences)))
    tokens = segments_of(spans, offsets)
    logits = tokens if one_each else segments_of(spans, logit_offsets)
    return StepRows(
        spans, sequences, leases, first, rows, table, offsets, logit_offsets, tokens, logits, one_each
    )  # fmt: skip


def segments_of(spans: Sequence[Span], offsets: Sequence[int]) -> list[Segment]:
    """One segment for each run of neighbouring spans with the same slots; several where a run is a mixture.

    offsets: where each span's rows begin, which are its last tokens.
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
