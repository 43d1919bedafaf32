"""Which parts of a phase run together, by their rows and by what they are: most sites of a step have this alike.

Knows no tensors.
"""

from collections.abc import Hashable, Sequence
from enum import StrEnum
from typing import NamedTuple

from .batches import Span, alike, waves


class How(StrEnum):
    ALONE = "alone"  # as its formula reads
    ROWS = "rows"  # rows to multiply by, or to add
    BATCH = "batch"  # in the batched form of its kind
    LAUNCH = "launch"  # in the kernel of its kind


class PartClass(NamedTuple):
    """Parts of one class can be one step, unless that is ALONE. key: of what they are."""

    how: How
    key: Hashable = None


ALONE = PartClass(How.ALONE)


class PartGroup(NamedTuple):
    """One step. members: its parts, by their places. No two of them share a row, but in a LAUNCH."""

    how: How
    members: tuple[int, ...]


def grouped(spans: Sequence[Span], classes: Sequence[PartClass], most_rows: int) -> list[PartGroup]:
    """In an order that goes by the parts alone. most_rows: of a step that pads its parts."""
    places: dict[PartClass, list[int]] = {}
    for place, which in enumerate(classes):
        places.setdefault(which, []).append(place)
    return [group for which, members in places.items() for group in _of_class(which.how, members, spans, most_rows)]


def _of_class(how: How, members: Sequence[int], spans: Sequence[Span], most_rows: int) -> list[PartGroup]:
    if how is How.LAUNCH:
        return [PartGroup(how, tuple(members))]
    if how is How.ALONE or (how is How.BATCH and len(members) == 1):
        return [PartGroup(How.ALONE, (member,)) for member in members]
    found = []
    for wave in waves([spans[member] for member in members]):
        there = [members[place] for place in wave]
        for some in alike([spans[member] for member in there], most_rows):
            found.append(PartGroup(how, tuple(there[place] for place in some)))
    return found
