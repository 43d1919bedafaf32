"""Segments of one kind, no two on the same row, as one call: which rows go in, and where their terms go.

The rows of a segment are padded to the length of the longest one of the batch. Knows no slots and no formulas.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

RowRange = tuple[int, int]

_MOST_PADDED = 4  # times the rows that there are: segments of more unlike lengths are no batch


class BatchRows(NamedTuple):
    """The rows of a batch of segments.

    segments, most: how many there are, and the rows of the longest. span: the slice of their rows, if they adjoin and
    are equally long; then the other fields are None. taken: (segments · most,) int64, the rows that go in, a shorter
    segment's last one repeated. kept: int64, the places in `taken` that are no repetition; None for all. rows: int64,
    the rows to which the kept terms are added.
    """

    segments: int
    most: int
    span: slice | None
    taken: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """Gather (rows of the step, ...) as (segments, most, ...)."""
        rows = x[self.span] if self.taken is None else x.index_select(0, self.taken)
        return rows.view(self.segments, self.most, *rows.shape[1:])

    def add_(self, y: torch.Tensor, terms: torch.Tensor) -> None:
        """Add terms to the rows of y in place. Each row gets one term, so nothing depends on an order.

        y: (rows of the step, ...). terms: (segments, most, ...).
        """
        flat = terms.flatten(0, 1).to(y.dtype)
        if self.rows is None:
            y[self.span].add_(flat)
        else:
            y.index_add_(0, self.rows, flat if self.kept is None else flat.index_select(0, self.kept))


def batch_rows(ranges: Sequence[RowRange], device: torch.device) -> BatchRows:
    """Return the rows of a batch. ranges: [start, end) of each segment; no two share a row."""
    most = max(end - start for start, end in ranges)
    alike = all(end - start == most for start, end in ranges)
    if alike and all(one[1] == other[0] for one, other in pairwise(ranges)):
        return BatchRows(len(ranges), most, slice(ranges[0][0], ranges[-1][1]))
    taken = [min(start + i, end - 1) for start, end in ranges for i in range(most)]
    kept = [segment * most + i for segment, (start, end) in enumerate(ranges) for i in range(end - start)]
    tensors = [torch.tensor(ids, device=device) for ids in (taken, kept, [taken[place] for place in kept])]
    return BatchRows(len(ranges), most, None, tensors[0], None if alike else tensors[1], tensors[2])


def row_index(ranges: Sequence[RowRange], device: torch.device) -> tuple[slice | torch.Tensor, torch.Tensor | None]:
    """Return the rows of all ranges, and to which range each belongs, both (rows,) int64.

    The rows are a slice where ranges adjoin, and the owners None where each range has one row.
    """
    adjoin = all(one[1] == other[0] for one, other in pairwise(ranges))
    single = all(end - start == 1 for start, end in ranges)
    ids = [row for start, end in ranges for row in range(start, end)]
    owners = [segment for segment, (start, end) in enumerate(ranges) for _ in range(start, end)]
    return (
        slice(ranges[0][0], ranges[-1][1]) if adjoin else torch.tensor(ids, device=device),
        None if single else torch.tensor(owners, device=device),
    )


def waves(ranges: Sequence[RowRange]) -> list[list[int]]:
    """Divide ranges, by their places, into waves of which no two ranges share a row; first come, first served."""
    found: list[list[int]] = []
    ends: list[int] = []
    for place in sorted(range(len(ranges)), key=lambda place: ranges[place][0]):
        start, end = ranges[place]
        wave = next((w for w, last in enumerate(ends) if last <= start), len(ends))
        if wave == len(ends):
            found.append([])
            ends.append(0)
        found[wave].append(place)
        ends[wave] = end
    return found


def alike(ranges: Sequence[RowRange], most_rows: int) -> list[list[int]]:
    """Divide ranges, by their places, into lists of similar lengths, so that padding costs little.

    A list has at most `most_rows` rows with its padding, or one range that is longer than that.
    """
    lengths = [end - start for start, end in ranges]
    if len(ranges) * max(lengths) <= _MOST_PADDED * sum(lengths):
        classes = [list(range(len(ranges)))]
    else:
        sizes = sorted({_class(length) for length in lengths})
        classes = [[i for i, length in enumerate(lengths) if _class(length) == size] for size in sizes]
    found = []
    for places in classes:
        count = max(most_rows // max(lengths[place] for place in places), 1)
        found += [places[i : i + count] for i in range(0, len(places), count)]
    return found


def _class(length: int) -> int:
    """Return the class of a length: no length of a class is twice another, or more."""
    return length.bit_length()
