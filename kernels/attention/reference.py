"""Paged attention as formulas in float64, span by span: the oracle of the kernels.

out[row, h] = sum over seen keys j:  softmax(cap(scale · query[h, row] · key[j]) + bias[h, j], sinks[h]) · value[j]
"""

from collections.abc import Sequence

import torch

from ..integers import cdiv
from .layout import AttentionLayer, Reach, Span


def naive_write(spans: Sequence[Span], new: torch.Tensor, cache: torch.Tensor) -> None:
    """Store new keys or values. new: (1, kv_heads, rows, dim). cache: (pages, page_size, kv_heads, dim)."""
    page_size = cache.shape[1]
    for span in spans:
        for offset in range(span.rows):
            position = span.total - span.rows + offset
            page = int(span.pages[position // page_size])
            cache[page, position % page_size] = new[0, :, span.row + offset]


def naive_attend(
    spans: Sequence[Span],
    layer: AttentionLayer,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend span by span. query: (1, heads, rows, key_dim).

    Returns (rows, heads, value_dim) in float64, with 0 in rows of no span.
    """
    out = torch.zeros(query.shape[2], layer.heads, layer.value_dim, dtype=torch.float64, device=query.device)
    for span in spans:
        rows = query[0, :, span.row : span.row + span.rows].double()
        k, v = (_gathered(cache, span).repeat_interleave(layer.group, 1) for cache in (keys, values))
        scores = torch.einsum("hrd,khd->hrk", rows, k) * layer.scale
        if layer.softcap is not None:
            scores = torch.tanh(scores / layer.softcap) * layer.softcap
        if bias is not None:
            scores += bias[:, None, : span.total].double()
        scores = scores.masked_fill(~_seen(span, layer.reach, query.device), float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, span.rows, 1)], -1)
        weights = scores.softmax(-1)[..., : span.total]
        out[span.row : span.row + span.rows] = torch.einsum("hrk,khd->rhd", weights, v)
    return out


def _gathered(cache: torch.Tensor, span: Span) -> torch.Tensor:
    """Gather (total, kv_heads, dim) in float64; 0 where a page is not in the cache."""
    page_size = cache.shape[1]
    pages = torch.as_tensor(span.pages, device=cache.device)[: cdiv(span.total, page_size)].long()
    found = cache[pages.clamp(0, len(cache) - 1)].double()
    found[(pages < 0) | (pages >= len(cache))] = 0
    return found.flatten(0, 1)[: span.total].nan_to_num()


def _seen(span: Span, reach: Reach, device: torch.device) -> torch.Tensor:
    """Return which keys each row sees, (rows, total) booleans."""
    key = torch.arange(span.total, device=device)
    position = key[span.total - span.rows :, None]
    return (key <= position) & (key >= reach.first(position))
