"""Parts of one kind on rows that no two of them share, as one call: which rows go in, and where their terms go.

A part's rows are padded to as many as the longest part of the batch has. Knows no slots and no formulas.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

Span = tuple[int, int]

_MOST_PADDED = 4  # times the rows that there are: parts of more unlike lengths are no batch


class BatchRows(NamedTuple):
    """parts, most: of the batch, and of rows of a part. span: where they are, if they adjoin and are equally long.

    taken: (parts · most,) rows that go in, a part's last one again where it is shorter. kept: those that are no such
    repetition, by their places in `taken`; None for all. rows: to which the terms are added. int64; None where there is
    a span.
    """

    parts: int
    most: int
    span: slice | None
    taken: torch.Tensor | None = None
    kept: torch.Tensor | None = None
    rows: torch.Tensor | None = None

    def of(self, x: torch.Tensor) -> torch.Tensor:
        """(rows of the step, ...) as (parts, most, ...)."""
        rows = x[self.span] if self.taken is None else x.index_select(0, self.taken)
        return rows.view(self.parts, self.most, *rows.shape[1:])

    def add_(self, y: torch.Tensor, terms: torch.Tensor) -> None:
        """Rows of y, (rows of the step, ...), plus terms: (parts, most, ...). Each row has one term: no sum of two."""
        flat = terms.flatten(0, 1).to(y.dtype)
        if self.rows is None:
            y[self.span].add_(flat)
        else:
            y.index_add_(0, self.rows, flat if self.kept is None else flat.index_select(0, self.kept))


def batch_rows(spans: Sequence[Span], device: torch.device) -> BatchRows:
    """spans: [start, end) of each part; no two share a row."""
    most = max(end - start for start, end in spans)
    alike = all(end - start == most for start, end in spans)
    if alike and all(one[1] == other[0] for one, other in pairwise(spans)):
        return BatchRows(len(spans), most, slice(spans[0][0], spans[-1][1]))
    taken = [min(start + i, end - 1) for start, end in spans for i in range(most)]
    kept = [part * most + i for part, (start, end) in enumerate(spans) for i in range(end - start)]
    tensors = [torch.tensor(ids, device=device) for ids in (taken, kept, [taken[place] for place in kept])]
    return BatchRows(len(spans), most, None, tensors[0], None if alike else tensors[1], tensors[2])


def row_index(spans: Sequence[Span], device: torch.device) -> tuple[slice | torch.Tensor, torch.Tensor | None]:
    """The rows of all spans, and whose each is: (rows,) int64; a slice if spans adjoin, None if each has one row."""
    adjoin = all(one[1] == other[0] for one, other in pairwise(spans))
    single = all(end - start == 1 for start, end in spans)
    ids = [row for start, end in spans for row in range(start, end)]
    owners = [part for part, (start, end) in enumerate(spans) for _ in range(start, end)]
    return (
        slice(spans[0][0], spans[-1][1]) if adjoin else torch.tensor(ids, device=device),
        None if single else torch.tensor(owners, device=device),
    )


def waves(spans: Sequence[Span]) -> list[list[int]]:
    """Which of the spans, by their places, may run together: none of a wave share a row; first come, first served."""
    found: list[list[int]] = []
    ends: list[int] = []
    for place in sorted(range(len(spans)), key=lambda place: spans[place][0]):
        start, end = spans[place]
        wave = next((w for w, last in enumerate(ends) if last <= start), len(ends))
        if wave == len(ends):
            found.append([])
            ends.append(0)
        found[wave].append(place)
        ends[wave] = end
    return found


def alike(spans: Sequence[Span], most_rows: int) -> list[list[int]]:
    """Spans by their places, so that those of a list are padded to few more rows than they have, and to most_rows.

    A span that is longer than that is alone.
    """
    lengths = [end - start for start, end in spans]
    if len(spans) * max(lengths) <= _MOST_PADDED * sum(lengths):
        classes = [list(range(len(spans)))]
    else:
        sizes = sorted({_class(length) for length in lengths})
        classes = [[i for i, length in enumerate(lengths) if _class(length) == size] for size in sizes]
    found = []
    for places in classes:
        count = max(most_rows // max(lengths[place] for place in places), 1)
        found += [places[i : i + count] for i in range(0, len(places), count)]
    return found


def _class(length: int) -> int:
    """Of lengths of which none is twice another, or more."""
    return length.bit_length()
