"""What a step gives the model: token ids, positions, the rows that reach the head; in the memory that is sent over."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch

from peftserve.kernels.device.step_memory import ALIGNMENT, StepMemory
from peftserve.kernels.integers import Ints

from ..scheduling.sequence import UNKNOWN
from ..scheduling.sequence import Sequence as EngineSequence
from .rows import StepRows

_FIELDS = 2  # of int32 in an int64


class Feed(NamedTuple):
    """The tokens that the step before has sampled, which the host may not know yet.

    token_ids: (rows,) int64 on the device. rows: of each sequence.
    """

    token_ids: torch.Tensor
    rows: Mapping[EngineSequence, int]


class StepInputs(NamedTuple):
    """ids, positions: (tokens,) int64 on the device. logit_rows: (rows,) those that reach the head; None for all."""

    ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor | None


class InputMemory:
    """most_rows: of any step. graph_rows: of the largest graph, whose ids and positions have one place for good."""

    def __init__(self, memory: StepMemory, most_rows: int, graph_rows: int = 0) -> None:
        self.memory = memory
        self._graph_rows = graph_rows
        self._ids = memory.reserve(_FIELDS * graph_rows, 5 * _FIELDS * most_rows)  # what `write` appends at most
        self._positions = memory.reserve(_FIELDS * graph_rows, 5 * ALIGNMENT)
        self._of_graphs: dict[int, StepInputs] = {}

    def of_graph(self, rows: int) -> StepInputs:
        """That a graph of so many rows reads."""
        assert rows <= self._graph_rows
        if rows not in self._of_graphs:
            ids, positions = (self.memory.seen(place, 8 * rows, torch.int64) for place in (self._ids, self._positions))
            self._of_graphs[rows] = StepInputs(ids, positions, None)
        return self._of_graphs[rows]

    def write(self, rows: StepRows, feed: Feed | None, graph_rows: int | None = None) -> "WrittenInputs":
        """graph_rows: of the graph that is to run them, which gives the rows beyond them token 0 at position 0."""
        ids, fed = _token_ids(rows, feed)
        positions = rows.starts if rows.one_each else ranges(rows.starts, rows.counts)
        if graph_rows is not None:
            for place, values in ((self._ids, ids), (self._positions, positions)):
                there = self.memory.at(place, _FIELDS * graph_rows).view(np.int64)
                there[: len(values)], there[len(values) :] = values, 0
            return WrittenInputs(self.of_graph(graph_rows), len(rows), fed, self.memory)
        append, logit_rows = self.memory.append, _logit_rows(rows)
        inputs = StepInputs(append(ids), append(positions), None if logit_rows is None else append(logit_rows))
        return WrittenInputs(inputs, len(rows), fed, self.memory)


class _Fed(NamedTuple):
    """places: the rows whose tokens are not known here, and where among the fed ones they are; None: all, in order."""

    feed: Feed
    places: tuple[Ints, Ints] | None


class WrittenInputs:
    """inputs: complete once the memory was sent and `feed` was called. rows: of the step, without a graph's others."""

    def __init__(self, inputs: StepInputs, rows: int, fed: _Fed | None, memory: StepMemory) -> None:
        self.inputs = inputs
        self._rows = rows
        self._fed = fed
        places = None if fed is None else fed.places
        self._places = None if places is None else (memory.append(places[0]), memory.append(places[1]))

    def feed(self) -> None:
        """Tokens that only the device knows, from there to there."""
        if self._fed is None:
            return
        ids, token_ids = self.inputs.ids, self._fed.feed.token_ids
        if self._places is None:
            ids[: self._rows].copy_(token_ids)
        else:
            targets, sources = self._places
            ids.index_copy_(0, targets, token_ids.index_select(0, sources))


def ranges(starts: Sequence[int] | Ints, lengths: Sequence[int] | Ints) -> Ints:
    """[start, start + length) of all pairs, one after the other."""
    counts = np.asarray(lengths, np.int64)
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(np.asarray(starts, np.int64) - (ends - counts), counts)


def _token_ids(rows: StepRows, feed: Feed | None) -> tuple[Ints, _Fed | None]:
    """(rows,), 0 where the feed has the token."""
    if feed is not None and rows.one_each and feed.rows is rows.lineup.places:  # all of them, in this order
        return np.zeros(len(rows), dtype=np.int64), _Fed(feed, None)
    ids = _ids_here(rows)
    return ids, _fed(rows, ids, feed)


def _ids_here(rows: StepRows) -> Ints:
    """(rows,), UNKNOWN where a step is sampling the token."""
    starts = rows.starts.tolist()
    if rows.one_each:
        known = [sequence.tokens[start] for sequence, start in zip(rows.sequences, starts, strict=True)]
        return np.array(known, dtype=np.int64)
    parts = (
        sequence.tokens[start : start + count]
        for sequence, start, count in zip(rows.sequences, starts, rows.counts.tolist(), strict=True)
    )
    return np.fromiter(chain.from_iterable(parts), np.int64, len(rows))


def _logit_rows(rows: StepRows) -> Ints | None:
    """The last ones of each span; None for all."""
    if rows.logit_offsets[-1] == len(rows):
        return None
    kept = np.diff(rows.logit_offsets)
    return ranges(np.array(rows.offsets[1:], dtype=np.int64) - kept, kept)


def _fed(rows: StepRows, ids: Ints, feed: Feed | None) -> _Fed | None:
    """What the feed has of these ids, which become 0. A token that is not known is its sequence's last one."""
    unknown = ids == UNKNOWN
    if feed is None or not unknown.any():
        return None
    ids[unknown] = 0
    targets = np.flatnonzero(unknown)
    spans = np.searchsorted(rows.offsets, targets, side="right") - 1
    sources = np.array([feed.rows[rows.sequences[span]] for span in spans.tolist()], dtype=np.int64)
    return _Fed(feed, (targets, sources))
