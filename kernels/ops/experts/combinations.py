"""Which adapters work on which rows of a step, at the experts of one module. On the host.

A combination is the set of adapters whose factors a row has: one adapter as a rule, several in a mixture, or none,
which is combination 0. Pairs of a token and an expert that agree in expert and combination are one group: they share
all factors, whatever their weights.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ..formulas import Op
from ..site_plan import OpSegment

Key = TypeVar("Key")


class Combinations(NamedTuple):
    """The combinations of one module.

    ops: all that work there, each once. members: the ops of each combination, by number. of_row: (rows,) int32, the
    combination of each row. weights: (most members, rows) float32, of the members of the row's combination in their
    order, and 0 behind them.
    """

    ops: Sequence[Op]
    members: Sequence[tuple[int, ...]]
    of_row: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @property
    def num_rows(self) -> int:
        """Count the rows that have any factors."""
        return int(np.count_nonzero(self.of_row))


def all_combinations(segments: Mapping[Key, Sequence[OpSegment]], rows: int) -> dict[Key, Combinations]:
    """Return the combinations of each module. Modules whose adapters work on the same rows share the arrays.

    segments: of each module. rows: of the step.
    """
    known: dict[_Pattern, _Shared] = {}
    found = {}
    for key, own in segments.items():
        ops = {id(segment.op): segment.op for segment in own}
        numbers = {identity: number for number, identity in enumerate(ops)}
        pattern = tuple(_Share(numbers[id(segment.op)], *segment[1:4]) for segment in own)
        if pattern not in known:
            known[pattern] = _shared(pattern, rows)
        found[key] = Combinations([*ops.values()], *known[pattern])
    return found


class _Share(NamedTuple):
    """One of the ops, by its number, on rows [start, end)."""

    number: int
    weight: float
    start: int
    end: int


_Pattern = tuple[_Share, ...]
_Shared = tuple[Sequence[tuple[int, ...]], npt.NDArray[np.int32], npt.NDArray[np.float32]]


def _shared(pattern: _Pattern, rows: int) -> _Shared:
    found: dict[tuple[int, ...], int] = {(): 0}
    of_row = np.zeros(rows, dtype=np.int32)
    weights = np.zeros((len(pattern), rows), dtype=np.float32)
    for start, end, there in _spans(pattern):
        own: dict[int, float] = {}
        for share in there:
            own[share.number] = own.get(share.number, 0.0) + share.weight
        members = tuple(sorted(own))
        of_row[start:end] = found.setdefault(members, len(found))
        weights[: len(members), start:end] = np.array([own[number] for number in members])[:, None]
    return [*found], of_row, weights[: max(map(len, found))].copy()


def _spans(pattern: _Pattern) -> Iterator[tuple[int, int, list[_Share]]]:
    """Yield ranges of rows [start, end) with the shares that cover all of them; ranges without any are left out."""
    starting: dict[int, list[_Share]] = {}
    for share in pattern:
        starting.setdefault(share.start, []).append(share)
    cuts = sorted({share.start for share in pattern} | {share.end for share in pattern})
    active: list[_Share] = []
    for start, end in pairwise(cuts):
        active = [share for share in [*active, *starting.get(start, ())] if share.end > start]
        if active:
            yield start, end, active
