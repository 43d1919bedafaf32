"""Paged attention in torch operators: what a CPU runs, and any other device without Triton.

Decodes of similar length run together over their gathered pages; longer spans run one by one, against their own keys
where they have no past.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from ...integers import cdiv
from ..layout import AttentionLayer, Span
from ..plan import positions_of, span_arrays
from .masked import Decodes, Prefill, attend_decodes, attend_prefill
from .running_keys import RunningKeys

MASKED_ROWS = 256  # rows of a masked product at a time: bounds the mask, and skips keys that no row of a block sees


class TorchAttention:
    """`AttentionBackend` in torch operators.

    layers: of the model, by the index that `attend` is given. page_size: tokens of a page. dtype: of the caches.
    spare_bytes: of memory for copies of the keys and values of sequences that decode together, which are then not
    gathered in each step.
    """

    reads_whole_pages = True

    def __init__(
        self,
        layers: Sequence[AttentionLayer],
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        spare_bytes: int = 0,
    ) -> None:
        self._layers = tuple(layers)
        self._page_size = page_size
        self._device = device
        self._spare = spare_bytes // dtype.itemsize
        self._width = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) for layer in layers)
        self._running: dict[int, RunningKeys] = {}  # of the last step, by what its lengths have in common
        self._num_rows = 0  # this and those below are the step's, set by `begin`
        self._places = torch.empty(0, dtype=torch.int64, device=device)
        self._decodes: list[Decodes] = []
        self._prefills: list[Prefill] = []
        self._own: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, spans: Sequence[Span], *, capacity: int | None = None) -> None:
        self._num_rows = sum(span.rows for span in spans)
        if capacity is not None and capacity < self._num_rows:
            raise ValueError(f"{self._num_rows} rows are more than the capacity of {capacity}")
        places = positions_of(span_arrays(spans, self._num_rows, self._page_size), self._page_size)
        self._places = self._tensor(places)
        singles = [span for span in spans if span.rows == 1]
        self._prefills = [rows for span in spans if span.rows > 1 for rows in self._prefill(span)]
        whole = not self._prefills and capacity in (None, self._num_rows)
        groups = self._by_length(singles)
        before, self._running = self._running, {}
        self._decodes = [
            self._decode(kind, there, before, whole and len(groups) == 1) for kind, there in groups.items()
        ]

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
        self._write(key, value, keys, values)
        spec, rows = self._layers[layer], query[0].transpose(0, 1)
        out = query.new_empty(0)
        if not self._decodes or self._decodes[0].rows is not None:
            out = query.new_zeros(query.shape[2], query.shape[1], values.shape[-1])
        for decode in self._decodes:
            there = self._keys(decode, layer, keys, values)
            if decode.rows is None:
                return attend_decodes(decode, rows, *there, spec, sinks, bias)
            out[decode.rows] = attend_decodes(decode, rows[decode.rows], *there, spec, sinks, bias)
        for span in self._prefills:
            seen = self._seen(span, keys, values)
            result = attend_prefill(span, query[0, :, span.begin : span.end], *seen, spec, sinks, bias)
            out[span.begin : span.end] = result.transpose(0, 1)
        return out

    def _write(self, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        for new, cache in ((key, keys), (value, values)):
            cache.flatten(0, 1).index_copy_(0, self._places, new[0, :, : self._num_rows].transpose(0, 1))
        self._own = (key, value)

    def _keys(
        self, decode: Decodes, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (batch, heads, tokens, dim) of all that the rows may see, and perhaps more."""
        if decode.running is not None:
            assert self._own is not None
            return decode.running.of_layer(layer, *self._own, keys, values)
        assert decode.pages is not None
        return _read(keys, decode.pages), _read(values, decode.pages)

    def _seen(self, span: Prefill, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (1, heads, tokens, dim) of all positions that the span's rows may see."""
        if span.context:
            pages = span.pages[:, : cdiv(span.total, self._page_size)]
            return _read(keys, pages), _read(values, pages)
        assert self._own is not None
        key, value = self._own
        return key[:, :, span.begin : span.end], value[:, :, span.begin : span.end]

    def _prefill(self, span: Span) -> list[Prefill]:
        """Take the whole span at once, or in blocks where it needs a mask over its past."""
        pages = self._pages([span])
        context = span.total - span.rows
        block = MASKED_ROWS if context else span.rows
        return [
            Prefill(span.row + begin, span.row + min(begin + block, span.rows), context + begin, pages)
            for begin in range(0, span.rows, block)
        ]

    def _by_length(self, spans: Sequence[Span]) -> dict[int, list[Span]]:
        """Group decodes of similar length: padding at most quadruples what a short one reads."""
        groups: dict[int, list[Span]] = {}
        for span in spans:
            groups.setdefault((span.total // self._page_size).bit_length() // 2, []).append(span)
        return groups

    def _decode(self, kind: int, group: Sequence[Span], before: Mapping[int, RunningKeys], whole: bool) -> Decodes:
        """Prepare one group. kind: what its lengths have in common. before: the contiguous copies of the last step."""
        running = before.get(kind)
        if running is None or not running.follow(group):
            running = RunningKeys(group, self._page_size)
        used = sum(there.num_positions for there in self._running.values())
        if (used + running.num_positions) * self._width <= self._spare:
            self._running[kind] = running
            rows = None if whole and running.rows is None else running.numbers
            return Decodes(rows, running.lengths, running, None)
        rows = None if whole else self._tensor(np.array([span.row for span in group]))
        return Decodes(rows, self._tensor(np.array([span.total for span in group])), None, self._pages(group))

    def _pages(self, spans: Sequence[Span]) -> torch.Tensor:
        """Return (spans, pages): the pages of each span's tokens so far, padded with its own first one."""
        counts = [cdiv(span.total, self._page_size) for span in spans]
        padded = np.repeat([[span.pages[0]] for span in spans], max(counts), axis=1).astype(np.int64)
        for row, span, count in zip(padded, spans, counts, strict=True):
            row[:count] = span.pages[:count]
        return self._tensor(padded)

    def _tensor(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def _read(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """Gather pages (batch, pages per sequence) as (batch, heads, tokens, dim), in order."""
    batch, count = pages.shape
    gathered = cache.index_select(0, pages.flatten())
    return gathered.view(batch, count * cache.shape[1], cache.shape[2], cache.shape[3]).transpose(1, 2)
