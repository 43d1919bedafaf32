"""Paged attention in torch operators: what a CPU runs, and any other device without Triton.

Decodes of similar length run together over their gathered pages; longer spans one by one, against what they bring
themselves where nothing comes before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ...integers import cdiv
from ..layout import AttentionLayer, Span
from ..plan import positions_of, span_arrays
from .running_keys import RunningKeys

MASKED_ROWS = 256  # rows of a masked product at a time: bounds the mask, and skips keys that no row of a block sees


@dataclass
class Decodes:
    """Rows of one query each.

    rows: (batch,) row numbers in the step, or None for all rows in order. lengths: (batch,) keys that each may see, its
    own included. running: where their keys lie side by side; or else pages: (batch, pages), padded with any page.
    """

    rows: torch.Tensor | None
    lengths: torch.Tensor
    running: RunningKeys | None
    pages: torch.Tensor | None
    masks: dict[tuple[int | None, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, num_keys: int, kv_heads: int) -> torch.Tensor:
        """(batch, kv_heads, 1, num_keys) float32, minus infinity for keys that are not seen.

        Made once a step for each window and number of heads.
        """
        if (window, kv_heads) not in self.masks:
            keys = torch.arange(num_keys, device=self.lengths.device)
            unseen = keys >= self.lengths[:, None]
            if window is not None:
                unseen |= keys < self.lengths[:, None] - window
            mask = torch.zeros(unseen.shape, device=unseen.device).masked_fill_(unseen, float("-inf"))
            self.masks[window, kv_heads] = mask[:, None, None].repeat(1, kv_heads, 1, 1)
        return self.masks[window, kv_heads]


@dataclass
class Prefill:
    """Rows [begin, end) are consecutive tokens of one sequence, after `context` earlier ones.

    pages: (1, pages) that begin with those of the context and the rows.
    """

    begin: int
    end: int
    context: int
    pages: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Keys that the last row sees."""
        return self.context + self.end - self.begin

    def mask(self, window: int | None, device: torch.device) -> torch.Tensor:
        """(rows, total) booleans: causal, within the window."""
        if window not in self.masks:
            keys = torch.arange(self.total, device=device)
            queries = keys[self.context :, None]
            seen = keys <= queries
            if window is not None:
                seen &= keys > queries - window
            self.masks[window] = seen
        return self.masks[window]


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
    ) -> torch.Tensor:
        self._write(key, value, keys, values)
        spec, rows = self._layers[layer], query[0].transpose(0, 1)
        out = query.new_empty(0)
        if not self._decodes or self._decodes[0].rows is not None:
            out = query.new_zeros(query.shape[2], query.shape[1], values.shape[-1])
        for decode in self._decodes:
            there = self._keys(decode, layer, keys, values)
            if decode.rows is None:
                return _decoded(decode, rows, *there, spec, sinks)
            out[decode.rows] = _decoded(decode, rows[decode.rows], *there, spec, sinks)
        for span in self._prefills:
            seen = self._seen(span, keys, values)
            result = prefill(span, query[0, :, span.begin : span.end], *seen, spec, sinks)
            out[span.begin : span.end] = result.transpose(0, 1)
        return out

    def _write(self, key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        for new, cache in ((key, keys), (value, values)):
            cache.flatten(0, 1).index_copy_(0, self._places, new[0, :, : self._num_rows].transpose(0, 1))
        self._own = (key, value)

    def _keys(
        self, decode: Decodes, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (batch, heads, tokens, dim) of all that the rows may see, and perhaps more."""
        if decode.running is not None:
            assert self._own is not None
            return decode.running.of_layer(layer, *self._own, keys, values)
        assert decode.pages is not None
        return _read(keys, decode.pages), _read(values, decode.pages)

    def _seen(self, span: Prefill, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1, heads, tokens, dim) of all that the span's rows may see."""
        if span.context:
            pages = span.pages[:, : cdiv(span.total, self._page_size)]
            return _read(keys, pages), _read(values, pages)
        assert self._own is not None
        key, value = self._own
        return key[:, :, span.begin : span.end], value[:, :, span.begin : span.end]

    def _prefill(self, span: Span) -> list[Prefill]:
        """The whole span at once, or in blocks where it needs a mask over all that comes before it."""
        pages = self._pages([span])
        context = span.total - span.rows
        block = MASKED_ROWS if context else span.rows
        return [
            Prefill(span.row + begin, span.row + min(begin + block, span.rows), context + begin, pages)
            for begin in range(0, span.rows, block)
        ]

    def _by_length(self, spans: Sequence[Span]) -> dict[int, list[Span]]:
        """Decodes of similar length together: padding at most quadruples what a short one reads."""
        groups: dict[int, list[Span]] = {}
        for span in spans:
            groups.setdefault((span.total // self._page_size).bit_length() // 2, []).append(span)
        return groups

    def _decode(self, kind: int, group: Sequence[Span], before: Mapping[int, RunningKeys], whole: bool) -> Decodes:
        """kind: what the group's lengths have in common. before: what lies there from the last step."""
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
        """(spans, pages): those that hold each span's tokens so far, padded with its own first one."""
        counts = [cdiv(span.total, self._page_size) for span in spans]
        padded = np.repeat([[span.pages[0]] for span in spans], max(counts), axis=1).astype(np.int64)
        for row, span, count in zip(padded, spans, counts, strict=True):
            row[:count] = span.pages[:count]
        return self._tensor(padded)

    def _tensor(self, values: npt.NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device, non_blocking=True)


def prefill(
    span: Prefill,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """query: (heads, rows, dim); keys, values: (1, kv heads, keys, dim), padded at the end.

    Returns (heads, rows, value dim).
    """
    total = span.total
    keys, values = keys[:, :, :total], values[:, :, :total]
    sees_all = layer.window is None or layer.window >= total
    if span.context == 0 and layer.softcap is None and sinks is None and sees_all:
        grouped_heads = keys.shape[1] != query.shape[0]
        out = F.scaled_dot_product_attention(
            query[None], keys, values, is_causal=True, scale=layer.scale, enable_gqa=grouped_heads
        )
        return out[0]
    heads, rows, dim = query.shape
    grouped = query.reshape(1, keys.shape[1], -1, dim)
    mask = span.mask(layer.window, query.device).repeat(heads // keys.shape[1], 1)[None, None]
    return _attend(grouped, keys, values, mask, layer, sinks).reshape(heads, rows, values.shape[-1])


def _decoded(
    decode: Decodes,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """query: (batch, heads, dim); keys, values: (batch, kv heads, keys, dim). Returns (batch, heads, value dim).

    The query heads of a group are the rows of one product with the group's keys, so keys are not repeated.
    """
    batch, heads, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    mask = decode.mask(layer.window, keys.shape[2], kv_heads)
    if query.dtype == torch.float32 and query.device.type == "cpu":
        out = _multiplied(grouped, keys, values, mask, layer, sinks)
    else:
        out = _attend(grouped, keys, values, mask == 0, layer, sinks)
    return out.reshape(batch, heads, values.shape[-1])


def _multiplied(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """`_attend` as batches of products, of which MKL makes two calls: for a few rows faster than what torch fuses."""
    query, keys, values, mask = (tensor.flatten(0, 1) for tensor in (query, keys, values, mask))
    if layer.softcap is None:
        scores = torch.baddbmm(mask, query, keys.transpose(1, 2), alpha=layer.scale)
    else:
        scores = torch.bmm(query, keys.transpose(1, 2)).mul_(layer.scale / layer.softcap).tanh_().mul_(layer.softcap)
        scores += mask
    if sinks is None:
        return torch.bmm(scores.softmax(-1), values)
    column = sinks.float().view(layer.kv_heads, -1, 1).repeat(len(query) // layer.kv_heads, 1, 1)
    weights = torch.cat([scores, column], -1).softmax(-1)
    return torch.bmm(weights[..., :-1], values)


def _attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Masked attention over (batch, kv heads, rows, dim); in plain operators for a soft cap or sinks.

    The rows of a kv head are those of its query heads, one head after the other.
    """
    if layer.softcap is None and sinks is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=layer.scale)
    scores = torch.matmul(query, keys.transpose(-1, -2)) * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.float().masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.float().view(keys.shape[1], -1, 1).repeat_interleave(query.shape[2] // layer.group, 1)
        scores = torch.cat([scores, column.expand(len(scores), -1, -1, 1)], -1)
    weights = scores.softmax(-1).to(values.dtype)
    return torch.matmul(weights[..., : keys.shape[2]], values)


def _read(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    """(batch, heads, tokens, dim) of the pages (batch, pages per sequence), in order."""
    batch, count = pages.shape
    gathered = cache.index_select(0, pages.flatten())
    return gathered.view(batch, count * cache.shape[1], cache.shape[2], cache.shape[3]).transpose(1, 2)
