"""The rows of a step as parts that a mixer can run: all sequences that go on by one token, and each longer span."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from peftserve.kernels.device.step_memory import StepMemory
from peftserve.kernels.integers import Ints

from ..rows import StepRows

_FIELDS = 2  # of int32 in an int64


@dataclass(frozen=True)
class Part:
    """Rows of a step that one call of a mixer runs, as a batch of `count` sequences with `length` tokens each.

    rows: (count * length,) int64 on the device, or a slice of the step's rows; None for all of them, in order.
    slots: (count,) int64 on the device, of the sequences' states. fresh: they have none yet.
    """

    rows: torch.Tensor | slice | None
    slots: torch.Tensor
    count: int
    length: int
    fresh: bool

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """Return the part of (1, tokens, ...) that is its own, as (count, length, ...)."""
        own = whole if self.rows is None else whole[:, self.rows]
        return own.view(self.count, self.length, *own.shape[2:])

    def by_token(self) -> list["Part"]:
        """Return its tokens as parts of their own, in order."""
        if self.length == 1:
            return [self]
        assert self.rows is None or isinstance(self.rows, slice), "parts of several tokens adjoin"
        begin = 0 if self.rows is None else self.rows.start
        rows = [slice(begin + i, begin + i + 1) for i in range(self.length)]
        return [Part(row, self.slots, 1, 1, self.fresh) for row in rows]


def are_fresh(rows: StepRows) -> Ints:
    """Return which spans begin a sequence, that has no state yet: (spans,) bool.

    Behind virtual tokens it has one, which the adapter brings.
    """
    fresh: Ints = rows.starts == 0
    return fresh


class PartsMemory:
    """The parts of each step, in the memory that is sent to the device.

    most_rows: of any step. graph_rows: of the largest graph: all graphs read their slots at one address. unused: the
    slot of rows that are no sequence's.
    """

    def __init__(self, memory: StepMemory, most_rows: int, graph_rows: int, unused: int) -> None:
        self._memory = memory
        self._graph_rows = graph_rows
        self._unused = unused
        self._slots = memory.reserve(_FIELDS * graph_rows, 5 * _FIELDS * most_rows)

    def write(self, rows: StepRows, graph_rows: int | None = None) -> list[Part]:
        """Write the parts of a step.

        graph_rows: of the graph that is to run it, in which every span is one row, and goes on from a state.
        """
        seats = rows.lineup.seats
        if graph_rows is not None:
            there = self._memory.at(self._slots, _FIELDS * graph_rows).view(np.int64)
            there[: len(seats)], there[len(seats) :] = seats, self._unused
            slots = self._memory.seen(self._slots, 8 * graph_rows, torch.int64)
            return [Part(None, slots, graph_rows, 1, fresh=False)]
        fresh = are_fresh(rows)
        single = (rows.counts == 1) & ~fresh
        if single.all():
            return [Part(None, self._memory.append(seats), len(seats), 1, fresh=False)] if len(seats) else []
        return self._mixed(rows, seats, fresh, single.nonzero()[0])

    def _mixed(self, rows: StepRows, seats: Ints, fresh: Ints, singles: Ints) -> list[Part]:
        offsets = np.array(rows.offsets)
        parts = []
        if len(singles):
            own, slots = self._memory.append(offsets[singles]), self._memory.append(seats[singles])
            parts.append(Part(own, slots, len(singles), 1, fresh=False))
        spans: Sequence[int] = np.setdiff1d(np.arange(len(seats)), singles).tolist()
        slots = self._memory.append(seats[spans])
        for place, span in enumerate(spans):
            begin, end = rows.offsets[span], rows.offsets[span + 1]
            whole = end - begin == len(rows)
            own_rows = None if whole else slice(begin, end)
            parts.append(Part(own_rows, slots[place : place + 1], 1, end - begin, fresh=bool(fresh[span])))
        return parts
