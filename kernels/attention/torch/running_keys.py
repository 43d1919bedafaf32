"""Contiguous keys and values of sequences that decode together, kept from step to step.

Gathering all pages in each step would cost as much as the attention itself. These are copies: each step appends its own
keys and values, and a step of other sequences gathers them anew from the pages.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...integers import cdiv, round_up
from ..layout import Span

Pages = Sequence[int] | npt.NDArray[np.integer]

GRAIN = 64  # tokens by which copies are larger than what they begin with


class RunningKeys:
    """Copies for spans of one row each, in the order of the spans that they were made for.

    A sequence is known by the object that its pages are in: another sequence may be given the same pages, with other
    contents, between two steps.

    capacity: positions of each sequence that there is room for. num_positions: of all together. rows: (sequences,) the
    row of each in the step; None if they are the first rows, in order. lengths: (sequences,) positions that each may
    see in the step, its own included.
    """

    def __init__(self, spans: Sequence[Span], page_size: int) -> None:
        self._page_size = page_size
        self._sources: list[Pages] = [span.pages for span in spans]
        self._pages = [list(span.pages[: self._num_pages(span.total)]) for span in spans]
        self._rows = np.array([span.row for span in spans])
        self._totals = np.array([span.total for span in spans])
        self.capacity = round_up(int(self._totals.max()) + GRAIN // 2, GRAIN)
        self.num_positions = len(spans) * self.capacity
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._grows = False  # the step adds to what is there
        self._set()

    @property
    def numbers(self) -> torch.Tensor:
        """Return the row of each in the step, (sequences,)."""
        return torch.from_numpy(self._rows.copy())

    def follow(self, spans: Sequence[Span]) -> bool:
        """Advance to the next step, if it runs the same sequences one position further; else return False."""
        if len(spans) != len(self._pages) or max(span.total for span in spans) > self.capacity:
            return False
        place = {id(source): i for i, source in enumerate(self._sources)}
        found = [place.get(id(span.pages), -1) for span in spans]
        if sorted(found) != list(range(len(spans))) or not all(map(self._continues, spans, found)):
            return False
        for span, i in zip(spans, found, strict=True):
            self._pages[i] = list(span.pages[: self._num_pages(span.total)])
            self._rows[i] = span.row
        self._totals += 1
        self._grows = True
        self._set()
        return True

    def of_layer(
        self, layer: int, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (sequences, kv heads, longest, dim) of a layer.

        Positions beyond a sequence's own length are for the mask to hide. key, value: the step's, (1, kv heads, rows,
        dim). keys, values: the layer's cache, which holds them already.
        """
        if self._grows and layer in self._layers:
            for new, copied in zip((key, value), self._layers[layer], strict=True):
                self._add(new, copied)
        else:
            self._layers[layer] = (self._gather(keys), self._gather(values))
        longest = int(self._totals.max())
        copied_keys, copied_values = self._layers[layer]
        return copied_keys[:, :, :longest], copied_values[:, :, :longest]

    def _add(self, new: torch.Tensor, there: torch.Tensor) -> None:
        count, heads, capacity, dim = there.shape
        rows = new[0] if self.rows is None else new[0].index_select(1, self.rows)
        if heads not in self._places:
            first = torch.arange(count * heads).view(count, heads) * capacity
            self._places[heads] = (first + self.lengths[:, None] - 1).flatten()
        there.view(-1, dim).index_copy_(0, self._places[heads], rows[:, :count].transpose(0, 1).reshape(-1, dim))

    def _gather(self, cache: torch.Tensor) -> torch.Tensor:
        """Copy all sequences out of their pages, with zeros behind them."""
        _, size, heads, dim = cache.shape
        there = cache.new_zeros(len(self._pages), heads, self.capacity, dim)
        for target, pages, total in zip(there, self._pages, self._totals.tolist(), strict=True):
            found = cache.index_select(0, torch.tensor(pages)).view(len(pages) * size, heads, dim)
            target[:, :total] = found[:total].transpose(0, 1)
        return there

    def _set(self) -> None:
        self.lengths = torch.from_numpy(self._totals.copy())
        self._places: dict[int, torch.Tensor] = {}  # of the step's keys among the copies, by the number of heads
        in_order = bool((self._rows == np.arange(len(self._rows))).all())
        self.rows = None if in_order else self.numbers

    def _num_pages(self, total: int) -> int:
        return cdiv(total, self._page_size)

    def _continues(self, span: Span, index: int) -> bool:
        """Return whether a span is the sequence of these copies, one position further."""
        pages = self._pages[index]
        return span.total == self._totals[index] + 1 and list(span.pages[: len(pages)]) == pages
