"""What a step asks of paged attention, and the interface of a backend. Knows no model and no scheduler.

A layer's cache is keys (pages, page_size, kv_heads, key_dim) and values (pages, page_size, kv_heads, value_dim), both
contiguous. Position p of a sequence lies in its page p // page_size, at place p % page_size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch

from ..integers import Ints

Pages = Sequence[int] | npt.NDArray[np.integer]
Position = TypeVar("Position", int, Ints, torch.Tensor)


class Reach(NamedTuple):
    """How far back a query sees. window: keys, its own included; None for all.

    restarts: whether windows do not slide with the query, but lie one after the other from position 0 on (the chunks of
    Llama 4): it then sees those keys of its own window that are not after it.
    """

    window: int | None = None
    restarts: bool = False

    def first(self, position: Position) -> Position:
        """Return the first position that each query sees; it may be negative, where that is the first of all."""
        if self.window is None:
            return position * 0
        return position // self.window * self.window if self.restarts else position - self.window + 1


@dataclass(frozen=True)
class AttentionLayer:
    """The heads of one layer, and how it turns products into weights.

    scale: of the products, positive. window, restarts: see `Reach`. softcap: scores are bent to within plus and minus
    it (Gemma 2, arXiv:2408.00118). sinks: whether each head has a logit that joins the softmax's denominator and has
    no value (gpt-oss). biased: whether a number is added to each score, by head and key (ALiBi, arXiv:2108.12409).
    """

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    restarts: bool = False
    biased: bool = False

    @property
    def reach(self) -> Reach:
        return Reach(self.window, self.restarts)

    @property
    def group(self) -> int:
        """Count the query heads of each kv head."""
        return self.heads // self.kv_heads


class Span(NamedTuple):
    """Consecutive tokens of one sequence: rows [row, row + rows) of the step, the last of its `total` positions.

    One row is a decode. pages: of all `total` positions, in order, and perhaps more; pages that no row's window reaches
    may be any number. A list that the last step had too has only grown at its end since.
    """

    row: int
    rows: int
    total: int
    pages: Pages


class SpanTable(Sequence[Span]):
    """The spans of a step by columns, which cost nothing to make from arrays. row, rows, total: (spans,)."""

    def __init__(self, row: Ints, rows: Ints, total: Ints, pages: Sequence[Pages]) -> None:
        self.columns = (row, rows, total, pages)

    def __len__(self) -> int:
        return len(self.columns[3])

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> list[Span]: ...
    def __getitem__(self, index: int | slice) -> Span | list[Span]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row, rows, total, pages = self.columns
        return Span(int(row[index]), int(rows[index]), int(total[index]), pages[index])


def columns_of(spans: Sequence[Span]) -> tuple[Ints, Ints, Ints, Sequence[Pages]]:
    """Return row, rows and total of each span, and its pages."""
    if isinstance(spans, SpanTable):
        return spans.columns
    row, rows, total, pages = zip(*spans, strict=True) if spans else ((), (), (), ())
    return *(np.array(column, dtype=np.int64) for column in (row, rows, total)), pages  # type: ignore[return-value]


class Limits(NamedTuple):
    """The largest step. rows: tokens. spans: sequences. positions: of one sequence."""

    rows: int
    spans: int
    positions: int


class AttentionBackend(Protocol):
    """Paged attention of a model: `begin` once a step, then `attend` once for each layer.

    reads_whole_pages: whether the backend reads a sequence's last page beyond its tokens, which must then be finite,
    though it counts for nothing.
    """

    reads_whole_pages: bool

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        """Set the spans of a step, which cover the first rows.

        capacity: rows that the launches are for, if more than the step's: what a graph is captured with. Rows beyond
        the spans are not written to the cache, and their outputs are 0. Raises ValueError if spans need more than their
        pages or the capacity.
        """

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        sinks: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Store the step's key and value in a layer's cache. Returns (rows, heads, value_dim), contiguous.

        query: (1, heads, rows, key_dim), key and value: (1, kv_heads, rows, dim), of any strides. keys, values: the
        layer's cache. sinks: (heads,), for a layer that has them. bias: (heads, positions) float32, contiguous, for a
        layer that is biased, of all positions that keys may have.

        Each row sees the positions of its sequence up to its own, within the layer's window, as the cache holds them.
        Sequences may share pages that the step fills if those are of a span of several rows. What a span of one row
        stores is seen by that row alone until the next step.
        """
