"""Which of a step's adapters go through spare columns, by how many rows they have. Knows no weights and no places.

An adapter in the columns costs a product that is a few columns wider for all rows of the step, and saves reading and
writing its rows of y once more. Measured on an H200 with Llama-3.1-8B's layers, rank 16 at all modules and 4,096 rows:
3.3 ns for each row of the step, and 52 to 90 ns for each row of the adapter. Below 64 rows of an adapter, kernels that
add to outputs in memory are bound by launches, and are not slower.
"""

from collections import Counter
from collections.abc import Mapping, Sequence, Set

from ..layout import Segment

LEAST_ROWS = 64
SHARE = 16  # an adapter has this part of the step's rows at least, 3.3 / 52 of them

Needs = Mapping[int, int]
"""Columns that an adapter takes, by group; groups that it does not touch are absent."""


def choose(
    segments: Sequence[Segment], needs: Mapping[int, Needs], reading: Set[int], columns: int, least_rows: int
) -> list[int]:
    """Return the slots to put into columns, those with most rows first, as far as they fit `columns` of each group.

    needs: columns of each slot that may be there. reading: slots that scale outputs as the base leaves them, on whose
    rows nothing may be added before.
    """
    rows = Counter[int]()
    for slot, _, start, end in segments:
        rows[slot] += end - start
    least = max(least_rows, max((s.end for s in segments), default=0) // SHARE)
    barred = _beside(segments, reading)
    chosen: list[int] = []
    taken = Counter[int]()
    for slot in sorted(rows, key=lambda slot: (-rows[slot], slot)):
        wanted = needs.get(slot)
        if wanted is None or rows[slot] < least or slot in barred:
            continue
        if all(taken[group] + count <= columns for group, count in wanted.items()):
            taken.update(wanted)
            chosen.append(slot)
    return chosen


def _beside(segments: Sequence[Segment], reading: Set[int]) -> set[int]:
    """Return the slots that have a row in common with one of these."""
    readers = [s for s in segments if s.slot in reading]
    return {s.slot for s in segments for r in readers if s.start < r.end and r.start < s.end}
