"""The inputs of the model in one step: token ids, positions, and the rows that reach the head.

They lie in the memory that is sent to the device in one copy.
"""

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

    token_ids: (rows,) int64 on the device. rows: from a sequence to its row in them.
    """

    token_ids: torch.Tensor
    rows: Mapping[EngineSequence, int]


class StepInputs(NamedTuple):
    """The model's inputs on the device.

    ids, positions: (tokens,) int64. logit_rows: (rows,) int64, the rows that reach the head; None for all.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor | None


class InputMemory:
    """The places of the inputs in the memory that is sent over.

    most_rows: of any step. graph_rows: of the largest graph. All graphs read their ids and positions at one address.
    """

    def __init__(self, memory: StepMemory, most_rows: int, graph_rows: int = 0) -> None:
        self.memory = memory
        self._graph_rows = graph_rows
        self._ids = memory.reserve(_FIELDS * graph_rows, 5 * _FIELDS * most_rows)  # what `write` appends at most
        self._positions = memory.reserve(_FIELDS * graph_rows, 5 * ALIGNMENT)
        self._of_graphs: dict[int, StepInputs] = {}

    def of_graph(self, rows: int) -> StepInputs:
        """Return the inputs that a graph of so many rows reads."""
        assert rows <= self._graph_rows
        if rows not in self._of_graphs:
            ids, positions = (self.memory.seen(place, 8 * rows, torch.int64) for place in (self._ids, self._positions))
            self._of_graphs[rows] = StepInputs(ids, positions, None)
        return self._of_graphs[rows]

    def write(self, rows: StepRows, feed: Feed | None, graph_rows: int | None = None) -> "WrittenInputs":
        """Write a step's inputs.

        feed: the tokens of the step before, for those that the host does not know. graph_rows: of the graph that is to
        run the step; its rows beyond the step's are token 0 at position 0.
        """
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
    """Tokens that are copied on the device.

    places: the rows whose tokens the host does not know, and where in the feed these tokens are; None: all, in order.
    """

    feed: Feed
    places: tuple[Ints, Ints] | None


class WrittenInputs:
    """Inputs that are complete once the memory has been sent and `feed` has been called."""

    def __init__(self, inputs: StepInputs, rows: int, fed: _Fed | None, memory: StepMemory) -> None:
        """Append to the memory what `feed` reads. rows: how many the step has, without the others of a graph."""
        self.inputs = inputs
        self._rows = rows
        self._fed = fed
        places = None if fed is None else fed.places
        self._places = None if places is None else (memory.append(places[0]), memory.append(places[1]))

    def feed(self) -> None:
        """Copy the tokens that only the device knows, from the step before to these inputs."""
        if self._fed is None:
            return
        ids, token_ids = self.inputs.ids, self._fed.feed.token_ids
        if self._places is None:
            ids[: self._rows].copy_(token_ids)
        else:
            targets, sources = self._places
            ids.index_copy_(0, targets, token_ids.index_select(0, sources))


def ranges(starts: Sequence[int] | Ints, lengths: Sequence[int] | Ints) -> Ints:
    """Return the numbers [start, start + length) of all pairs, one range after the other."""
    counts = np.asarray(lengths, np.int64)
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(np.asarray(starts, np.int64) - (ends - counts), counts)


def _token_ids(rows: StepRows, feed: Feed | None) -> tuple[Ints, _Fed | None]:
    """Return the token ids (rows,), with 0 where the feed has the token, and what the feed is to fill in."""
    if feed is not None and rows.one_each and feed.rows is rows.lineup.places:  # all of them, in this order
        return np.zeros(len(rows), dtype=np.int64), _Fed(feed, None)
    ids = _ids_here(rows)
    return ids, _fed(rows, ids, feed)


def _ids_here(rows: StepRows) -> Ints:
    """Return the token ids (rows,), with UNKNOWN where a step is still sampling the token."""
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
    """Return the rows that reach the head, which are the last ones of each sequence; None for all rows."""
    if rows.logit_offsets[-1] == len(rows):
        return None
    kept = np.diff(rows.logit_offsets)
    return ranges(np.array(rows.offsets[1:], dtype=np.int64) - kept, kept)


def _fed(rows: StepRows, ids: Ints, feed: Feed | None) -> _Fed | None:
    """Find the unknown ids in the feed, and set them to 0. Only a sequence's last token can be unknown."""
    unknown = ids == UNKNOWN
    if feed is None or not unknown.any():
        return None
    ids[unknown] = 0
    targets = np.flatnonzero(unknown)
    spans = np.searchsorted(rows.offsets, targets, side="right") - 1
    sources = np.array([feed.rows[rows.sequences[span]] for span in spans.tolist()], dtype=np.int64)
    return _Fed(feed, (targets, sources))
