"""Paged attention by two kernels: long spans by flash kernels, all others by ours, in one step and into one output.

Flash kernels know no pages. A prompt without a past runs on its own keys, as the layer's products left them; otherwise
the keys of all long spans are gathered once a layer, into memory that is allocated at the start.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy.typing as npt
import torch

from ...device.copies import to_device
from ..layout import AttentionLayer, Span
from ..triton.backend import TritonAttention
from .calls import Flash, Packed
from .plan import FlashPlan, choose, plan_flash


class MixedAttention:
    """`AttentionBackend` of two kernels.

    own: made for the same layers, with `assisted`. assisted: layers that flash kernels may run. least_rows: of a span
    that they get, two or more. most_keys: that are gathered at once; spans with a past for which there is no room go to
    our own kernel.
    """

    reads_whole_pages = False

    def __init__(
        self,
        own: TritonAttention,
        flash: Flash,
        layers: Sequence[AttentionLayer],
        assisted: Collection[int],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        least_rows: int,
        most_keys: int,
    ) -> None:
        assert least_rows > 1, "a span of one row is written in the launch of our own kernel"
        self.reads_whole_pages = False
        self.least_rows = least_rows
        self._own = own
        self._flash = flash
        self._layers = tuple(layers)
        self._assisted = frozenset(assisted)
        self._windows = {layers[index].window for index in assisted}
        self._page_size = page_size
        self._most_keys = most_keys
        widths = [(layers[index].kv_heads * layers[index].key_dim) for index in assisted]
        self._gathered = torch.empty(2, most_keys * max(widths), dtype=dtype, device=device)
        self._sequences: dict[int | None, tuple[Packed, torch.Tensor | None]] = {}  # the step's, by the window
        self._rest = True  # whether the step has spans for our own kernel

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        chosen = choose(spans, self.least_rows, self._most_keys) if capacity is None else []
        self._own.begin(spans, capacity=capacity, elsewhere=chosen)
        windows = self._windows if chosen else ()
        self._sequences = {
            window: self._on_device(plan_flash(spans, chosen, window, self._page_size)) for window in windows
        }
        self._rest = len(chosen) < len(spans)

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
        if not self._sequences or layer not in self._assisted:
            return self._own.attend(layer, query, key, value, keys, values, sinks, bias)
        self._own.write(key, value, keys, values)
        spec = self._layers[layer]
        packed, places = self._sequences[spec.window]
        seen_keys, seen_values = _by_rows(key), _by_rows(value)
        if places is not None:
            seen_keys, seen_values = (
                _gather(cache, places, into) for cache, into in zip((keys, values), self._gathered, strict=True)
            )
        out = self._flash(_by_rows(query), seen_keys, seen_values, packed, spec).contiguous()
        if self._rest:  # over what the flash kernel made of their rows
            self._own.attend_to_rest(layer, query, key, value, keys, values, sinks, bias, out)
        return out

    def _on_device(self, plan: FlashPlan) -> tuple[Packed, torch.Tensor | None]:
        ends, key_ends = (self._tensor(array.astype("int32")) for array in plan[:2])
        places = None if plan.places is None else self._tensor(plan.places)
        return Packed(ends, key_ends, plan.most_rows, plan.most_keys), places

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return to_device(array, self._gathered.device)


def _by_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return (rows, heads, dim) of (1, heads, rows, dim), with adjoining columns."""
    rows = tensor[0].transpose(0, 1)
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _gather(cache: torch.Tensor, places: torch.Tensor, into: torch.Tensor) -> torch.Tensor:
    """Gather (keys, kv_heads, dim) into memory that the next layer uses as well."""
    rows = cache.flatten(0, 1)
    out = into[: len(places) * rows[0].numel()].view(len(places), *rows.shape[1:])
    return torch.index_select(rows, 0, places, out=out)
