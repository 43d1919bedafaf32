"""Which spans of a step go to flash kernels, and where their keys are. Host only, no torch."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from ...integers import Ints
from ..layout import Span


class FlashPlan(NamedTuple):
    """The rows of a step as sequences: each chosen span, and the gaps between them, whose outputs nobody reads.

    ends, key_ends: (sequences + 1,) where their rows and keys end, beginning with 0. places: (keys,) in the cache, of
    the chosen spans' keys; None where no span has any keys but its own, which are then the step's.
    """

    ends: Ints
    key_ends: Ints
    places: Ints | None

    @property
    def most_rows(self) -> int:
        return int(np.diff(self.ends).max())

    @property
    def most_keys(self) -> int:
        return int(np.diff(self.key_ends).max())


def choose(spans: Sequence[Span], least_rows: int, most_keys: int) -> list[int]:
    """Return the numbers of the spans of so many rows or more.

    Of those with a past, as many as find room for their keys.
    """
    long = [number for number, span in enumerate(spans) if span.rows >= least_rows]
    if all(spans[number].total == spans[number].rows for number in long):
        return long
    found, room = list[int](), most_keys
    for number in long:
        if spans[number].total <= room:
            room -= spans[number].total
            found.append(number)
    return found


def plan_flash(spans: Sequence[Span], chosen: Collection[int], window: int | None, page_size: int) -> FlashPlan:
    """Lay out the chosen spans, without the keys before their windows.

    spans: in the order of their rows, which are all rows.
    """
    own = all(spans[number].total == spans[number].rows for number in chosen)
    ends, key_ends, places = [0], [0], list[Ints]()
    for number, span in enumerate(spans):
        if number in chosen and not own:
            places.append(_places(span, window, page_size))
            keys = len(places[-1])
        else:
            keys = span.rows if own else 0
        ends.append(span.row + span.rows)
        key_ends.append(key_ends[-1] + keys)
    return FlashPlan(np.array(ends), np.array(key_ends), None if own else np.concatenate(places))


def _places(span: Span, window: int | None, page_size: int) -> Ints:
    """Return the places of all keys that some row of the span sees."""
    first = 0 if window is None else max(span.total - span.rows - window + 1, 0)
    key = np.arange(first, span.total)
    pages = np.asarray(span.pages, dtype=np.int64)
    return pages[key // page_size] * page_size + key % page_size
