"""Which segments of a stage run together, by their rows and by what they are: most sites of a step have this alike.

Knows no tensors.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple

from .batches import RowRange, alike, waves


class CallForm(StrEnum):
    ALONE = "alone"  # as its formula reads
    ROWS = "rows"  # rows to multiply by, or to add
    BATCH = "batch"  # in the batched form of its kind
    LAUNCH = "launch"  # in the kernel of its kind


class SegmentClass(NamedTuple):
    """Segments of one class can be one step, unless that is ALONE. key: of what they are."""

    form: CallForm
    key: Hashable = None


ALONE = SegmentClass(CallForm.ALONE)


class SegmentGroup(NamedTuple):
    """One step. members: its segments, by their places. No two of them share a row, but in a LAUNCH."""

    form: CallForm
    members: tuple[int, ...]


def grouped(ranges: Sequence[RowRange], classes: Sequence[SegmentClass], most_rows: int) -> list[SegmentGroup]:
    """In an order that goes by the segments alone. most_rows: of a step that pads its segments."""
    places: dict[SegmentClass, list[int]] = {}
    for place, which in enumerate(classes):
        places.setdefault(which, []).append(place)
    return [group for which, members in places.items() for group in _of_class(which.form, members, ranges, most_rows)]


def _of_class(form: CallForm, members: Sequence[int], ranges: Sequence[RowRange], most_rows: int) -> list[SegmentGroup]:
    if form is CallForm.LAUNCH:
        return [SegmentGroup(form, tuple(members))]
    if form is CallForm.ALONE or (form is CallForm.BATCH and len(members) == 1):
        return [SegmentGroup(CallForm.ALONE, (member,)) for member in members]
    found = []
    for wave in waves([ranges[member] for member in members]):
        there = [members[place] for place in wave]
        for some in alike([ranges[member] for member in there], most_rows):
            found.append(SegmentGroup(form, tuple(there[place] for place in some)))
    return found
