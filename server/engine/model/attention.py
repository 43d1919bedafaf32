"""Paged attention behind transformers' AttentionInterface, in torch operations that run on any device.

One object holds the step's metadata (`step`), which the runner fills before each forward pass; the layers reach it
because the object itself is what is registered as their attention function. Keys and values of the whole step are
written before any are read, so sequences of one step may share pages.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

from .errors import UnservableModel
from .kv_cache import KVCache, KVShape

_names = itertools.count()
_UNSERVED = ("s_aux", "position_bias", "head_mask")  # attention inputs that would change the result


@dataclass(frozen=True)
class Scoring:
    """How one layer turns products into weights. scale: of the scores. window: keys that a query sees, itself included.

    softcap: scores are bent to within plus and minus it (Gemma 2, arXiv:2408.00118).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass
class DecodeRows:
    """Rows of one query token each.

    rows: (batch,) row numbers in the step, or None for all rows in order. pages: (batch, pages), padded with any
    page. lengths: (batch,) keys that each may see, its own included.
    """

    rows: torch.Tensor | None
    pages: torch.Tensor
    lengths: torch.Tensor
    masks: dict[int | None, torch.Tensor] = field(default_factory=dict)

    def mask(self, window: int | None, num_keys: int) -> torch.Tensor:
        """(batch, 1, 1, num_keys) booleans: which keys are seen. Made once a step for each window."""
        if window not in self.masks:
            keys = torch.arange(num_keys, device=self.lengths.device)
            seen = keys < self.lengths[:, None]
            if window is not None:
                seen &= keys >= self.lengths[:, None] - window
            self.masks[window] = seen[:, None, None, :]
        return self.masks[window]


@dataclass
class PrefillRows:
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


class SideKeys(Protocol):
    """keys, values: (length, kv heads, dim), beside the cache and seen by every row. scale: of the scores."""

    @property
    def keys(self) -> torch.Tensor: ...
    @property
    def values(self) -> torch.Tensor: ...
    @property
    def scale(self) -> float: ...


class SideRows(NamedTuple):
    """Rows [begin, end) attend to `layers[layer]` as well, by a softmax of its own."""

    begin: int
    end: int
    weight: float
    layers: Mapping[int, SideKeys]

    def add_(self, layer: int, query: torch.Tensor, out: torch.Tensor) -> None:
        """query: (heads, tokens, dim) of the whole step. out: (tokens, heads, value dim), changed in place."""
        if (side := self.layers.get(layer)) is None:
            return
        heads, kv_heads = query.shape[0], side.keys.shape[1]
        rows = query[:, self.begin : self.end].unflatten(0, (kv_heads, heads // kv_heads)).flatten(1, 2)
        scores = rows @ side.keys.permute(1, 2, 0) * side.scale
        result = scores.softmax(-1, dtype=torch.float32).to(rows.dtype) @ side.values.transpose(0, 1)
        result = result.view(heads, self.end - self.begin, -1).transpose(0, 1)
        out[self.begin : self.end].add_(result, alpha=self.weight)


@dataclass
class AttentionStep:
    """write: (tokens,) flat cache positions of the step's tokens. Every row is in one decode or one prefill."""

    write: torch.Tensor
    decodes: list[DecodeRows]
    prefills: list[PrefillRows]
    side: list[SideRows] = field(default_factory=list)


class PagedAttention:
    """The attention function of one model.

    cache and step: None until the engine has made the cache, and the runner the step. Without a cache it computes
    plain causal attention over what it is given and notes each layer's shapes in `shapes`.
    """

    def __init__(self) -> None:
        self.name = f"peftserve_{next(_names)}"
        self.shapes: dict[int, KVShape] = {}
        self.cache: KVCache | None = None
        self.step: AttentionStep | None = None
        AttentionInterface.register(self.name, self)

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """query: (1, heads, tokens, dim); key, value: (1, kv heads, tokens, dim). Returns (1, tokens, heads, dim)."""
        layer = _layer_of(module)
        scoring = Scoring(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
        if self.cache is None or self.step is None:
            self._note_shapes(layer, key, value, kwargs)
            rows = PrefillRows(0, query.shape[2], 0, torch.empty(0))
            out = _prefill(rows, query[0], key, value, scoring)
            return out.transpose(0, 1)[None], None
        out = self._paged(layer, query[0], key[0], value[0], scoring)
        for rows_beside in self.step.side:
            rows_beside.add_(layer, query[0], out)
        return out[None], None

    def _paged(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scoring: Scoring
    ) -> torch.Tensor:
        assert self.cache is not None
        assert self.step is not None
        self.cache.write(layer, self.step.write, key.transpose(0, 1), value.transpose(0, 1))
        heads, tokens, _ = query.shape
        out = query.new_empty(tokens, heads, value.shape[-1])
        for decode in self.step.decodes:
            keys, values = self.cache.read(layer, decode.pages)
            rows = query.transpose(0, 1) if decode.rows is None else query[:, decode.rows].transpose(0, 1)
            result = _decode(decode, rows, keys, values, scoring)
            if decode.rows is None:
                return result
            out[decode.rows] = result
        for span in self.step.prefills:
            keys, values = key[None, :, span.begin : span.end], value[None, :, span.begin : span.end]
            if span.context:
                keys, values = self.cache.read(layer, span.pages[:, : self.cache.num_pages_of(span.total)])
            rows = query[:, span.begin : span.end]
            out[span.begin : span.end] = _prefill(span, rows, keys, values, scoring).transpose(0, 1)
        return out

    def _note_shapes(self, layer: int, key: torch.Tensor, value: torch.Tensor, kwargs: Mapping[str, Any]) -> None:
        for name in _UNSERVED:
            if kwargs.get(name) is not None:
                raise UnservableModel(f"its attention uses `{name}`, which paged attention here does not support")
        if layer in self.shapes:
            raise UnservableModel(f"two attention modules share layer index {layer}")
        self.shapes[layer] = KVShape(key.shape[1], key.shape[3], value.shape[3])


def _layer_of(module: torch.nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise UnservableModel(f"{type(module).__name__} has no layer index")
    return layer


def _decode(
    decode: DecodeRows, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """query: (batch, heads, dim); keys, values: (batch, kv heads, keys, dim). Returns (batch, heads, value dim).

    The query heads of a group are the rows of one product with the group's keys, so keys are not repeated.
    """
    batch, heads, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    out = _attend(grouped, keys, values, decode.mask(scoring.window, keys.shape[2]), scoring)
    return out.reshape(batch, heads, values.shape[-1])


def _prefill(
    span: PrefillRows, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """query: (heads, rows, dim); keys, values: (1, kv heads, keys, dim), padded at the end. Returns query's shape."""
    total = span.total
    keys, values = keys[:, :, :total], values[:, :, :total]
    sees_all = scoring.window is None or scoring.window >= total
    if span.context == 0 and scoring.softcap is None and sees_all:
        grouped_heads = keys.shape[1] != query.shape[0]
        out = F.scaled_dot_product_attention(
            query[None], keys, values, is_causal=True, scale=scoring.scale, enable_gqa=grouped_heads
        )
        return out[0]
    heads, rows, dim = query.shape
    grouped = query.reshape(1, keys.shape[1], -1, dim)
    mask = span.mask(scoring.window, query.device).repeat(heads // keys.shape[1], 1)[None, None]
    return _attend(grouped, keys, values, mask, scoring).reshape(heads, rows, values.shape[-1])


def _attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Masked attention over (batch, kv heads, rows, dim); with a soft cap in plain operators, softmax in float32."""
    if scoring.softcap is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scoring.scale)
    scores = torch.matmul(query, keys.transpose(-1, -2)) * scoring.scale
    scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores = scores.float().masked_fill(~mask, float("-inf"))
    return torch.matmul(scores.softmax(-1).to(values.dtype), values)
