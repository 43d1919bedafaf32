"""Which segments of a stage run together, by their rows and their kinds. Most sites of a step have this in common.

Knows no tensors.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple

from .batches import RowRange, alike, waves


class CallForm(StrEnum):
    """How a group of segments runs."""

    ALONE = "alone"  # as its formula reads
    ROWS = "rows"  # rows to multiply by, or to add
    BATCH = "batch"  # in the batched form of its kind
    LAUNCH = "launch"  # in the kernel of its kind


class SegmentClass(NamedTuple):
    """A class of segments that may run as one call, unless its form is ALONE. key: of their kind and shapes."""

    form: CallForm
    key: Hashable = None


ALONE = SegmentClass(CallForm.ALONE)


class SegmentGroup(NamedTuple):
    """The segments of one call. members: by their places. No two share a row, except in a LAUNCH."""

    form: CallForm
    members: tuple[int, ...]


def grouped(ranges: Sequence[RowRange], classes: Sequence[SegmentClass], most_rows: int) -> list[SegmentGroup]:
    """Divide segments into calls, in an order that depends on the segments alone.

    most_rows: of a call that pads its segments.
    """
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
