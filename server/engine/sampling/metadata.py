"""Parameters of a step's sampling on the device: all that is known before its launch, and is sent with the step."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..staging import Arrays, to_device
from .masks import Masks
from .penalties import Edits
from .randomness import uniforms
from .selection import Selection
from .truncation import Cuts

Append = Callable[[NDArray[Any]], Tensor]
"""Appends an array to the memory that is sent with the step. Returns the tensor that will have it on the device."""

_NONE = torch.empty(0)
_NOTHING: list[list[Tensor]] = [[], [], [], [_NONE, _NONE], [_NONE, _NONE]]


class SamplingMetadata:
    """How the rows of one step are sampled. The tensors are complete once the step's memory has been sent.

    drawn: the rows that are not greedy; of them, in order, temperature (n,) float32, uniform (n,) float64 and cuts.
    reported: the rows that want logprobs, with as many alternatives as `tops` says.
    needs_tokens: whether `edits` reads the rows' outputs, all of whose tokens have to be known then.
    """

    def __init__(
        self, selection: Selection, ends: NDArray[np.int64], device: torch.device, append: Append | None = None
    ) -> None:
        """Send what `selection` asks for.

        ends: (rows,) number of tokens of each row's sequence before the one that is to come. append: to the step's
        memory; without it, all goes over in a copy of its own.
        """
        self.num_rows = selection.num_rows
        self._selection = selection
        self._positions = ends - selection.num_before
        self._device = device
        min_p, top_k, top_p, points, rows = self._sent(append) if _asks_for_anything(selection) else _NOTHING
        self.cuts = Cuts(min_p, top_k, top_p, selection.max_k)
        self.temperature, self.uniform = points
        drawn, reported = rows
        self.drawn = RowSelection(selection.drawn, drawn, selection.num_rows)
        self.reported = RowSelection(selection.reported, reported, selection.num_rows)
        self.tops = selection.tops

    def _sent(self, append: Append | None) -> list[list[Tensor]]:
        chosen = self._selection
        uniform = uniforms(chosen.seeds, self._positions[chosen.drawn])
        host: list[Arrays] = [*chosen.cuts, [chosen.temperature, uniform], [chosen.drawn, chosen.reported]]
        return to_device(host, self._device) if append is None else [[append(a) for a in group] for group in host]

    @property
    def needs_tokens(self) -> bool:
        return self._selection.needs_tokens

    def edits(self, width: int) -> Edits:
        """Send the edits of single logits, of which a row has `width`: in a copy of their own, if there are any."""
        host = self._selection.edits(self._positions, width)
        return Edits(*(to_device(host, self._device) if any(host) else host))

    def masks(self, width: int) -> Masks | None:
        """Send the masks of rows whose output has a form, in a copy of their own; None if there are none."""
        host = self._selection.masks(width)
        return Masks(*to_device([host], self._device)[0]) if host else None


def _asks_for_anything(selection: Selection) -> bool:
    return len(selection.drawn) > 0 or len(selection.reported) > 0


class RowSelection:
    """Some rows of a step, in their order."""

    def __init__(self, rows: NDArray[np.int64], index: Tensor, num_rows: int) -> None:
        """Select rows. rows: on the host; index: the same on the device; num_rows: of the whole step."""
        self.rows = rows
        self.has_all = len(rows) == num_rows
        self._index = index

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def of(self, tensor: Tensor) -> Tensor:
        """Return these rows of a tensor; the tensor itself if they are all of it."""
        return tensor if self.has_all else tensor.index_select(0, self._index)

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Overwrite these rows of a tensor."""
        tensor.index_copy_(0, self._index, values)
