"""Masked attention in torch operators, over contiguous keys and values: single rows, and spans of several."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from ..layout import AttentionLayer, Reach
from .running_keys import RunningKeys


@dataclass
class Decodes:
    """Rows of one query each.

    rows: (batch,) row numbers in the step, or None for all rows in order. lengths: (batch,) keys that each may see, its
    own included. running: contiguous copies of their keys; if None, pages: (batch, pages), padded with any page.
    """

    rows: torch.Tensor | None
    lengths: torch.Tensor
    running: RunningKeys | None
    pages: torch.Tensor | None
    masks: dict[tuple[Reach, int], torch.Tensor] = field(default_factory=dict)

    def mask(self, reach: Reach, num_keys: int, kv_heads: int) -> torch.Tensor:
        """Return (batch, kv_heads, 1, num_keys) float32, minus infinity for keys that are not seen.

        Made once a step for each reach and number of heads.
        """
        if (reach, kv_heads) not in self.masks:
            keys = torch.arange(num_keys, device=self.lengths.device)
            unseen = keys >= self.lengths[:, None]
            if reach.window is not None:
                unseen |= keys < reach.first(self.lengths - 1)[:, None]
            mask = torch.zeros(unseen.shape, device=unseen.device).masked_fill_(unseen, float("-inf"))
            self.masks[reach, kv_heads] = mask[:, None, None].repeat(1, kv_heads, 1, 1)
        return self.masks[reach, kv_heads]


@dataclass
class Prefill:
    """Rows [begin, end) of the step, consecutive tokens of one sequence after `context` earlier ones.

    pages: (1, pages), of which the first hold the context and the rows.
    """

    begin: int
    end: int
    context: int
    pages: torch.Tensor
    masks: dict[Reach, torch.Tensor] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Count the keys that the last row sees."""
        return self.context + self.end - self.begin

    def mask(self, reach: Reach, device: torch.device) -> torch.Tensor:
        """Return which keys each row sees, (rows, total) booleans: causal, within the window."""
        if reach not in self.masks:
            keys = torch.arange(self.total, device=device)
            queries = keys[self.context :, None]
            seen = keys <= queries
            if reach.window is not None:
                seen &= keys >= reach.first(queries)
            self.masks[reach] = seen
        return self.masks[reach]


def attend_prefill(
    span: Prefill,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend for the rows of one span.

    query: (heads, rows, dim); keys, values: (1, kv heads, keys, dim), padded at the end. bias: (heads, positions).
    Returns (heads, rows, value dim).
    """
    total = span.total
    keys, values = keys[:, :, :total], values[:, :, :total]
    sees_all = layer.window is None or layer.window >= total
    plain = layer.softcap is None and sinks is None and bias is None
    if span.context == 0 and plain and sees_all:
        grouped_heads = keys.shape[1] != query.shape[0]
        out = F.scaled_dot_product_attention(
            query[None], keys, values, is_causal=True, scale=layer.scale, enable_gqa=grouped_heads
        )
        return out[0]
    heads, rows, dim = query.shape
    grouped = query.reshape(1, keys.shape[1], -1, dim)
    mask = span.mask(layer.reach, query.device).repeat(heads // keys.shape[1], 1)[None, None]
    if bias is not None:
        bias = bias[:, :total].view(1, keys.shape[1], -1, total).repeat_interleave(rows, 2)
    return _attend(grouped, keys, values, mask, layer, sinks, bias).reshape(heads, rows, values.shape[-1])


def attend_decodes(
    decode: Decodes,
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend for single rows. The query heads of a group are the rows of one product, so keys are not repeated.

    query: (batch, heads, dim); keys, values: (batch, kv heads, keys, dim). bias: (heads, positions). Returns (batch,
    heads, value dim).
    """
    batch, heads, dim = query.shape
    kv_heads = keys.shape[1]
    grouped = query.reshape(batch, kv_heads, heads // kv_heads, dim)
    mask = decode.mask(layer.reach, keys.shape[2], kv_heads)
    if bias is not None:
        bias = _padded(bias, keys.shape[2]).view(1, kv_heads, -1, keys.shape[2])
    if query.dtype == torch.float32 and query.device.type == "cpu":
        out = _attend_by_products(grouped, keys, values, mask if bias is None else mask + bias, layer, sinks)
    else:
        out = _attend(grouped, keys, values, mask == 0, layer, sinks, bias)
    return out.reshape(batch, heads, values.shape[-1])


def _padded(bias: torch.Tensor, num_keys: int) -> torch.Tensor:
    """Return the bias of so many keys, (heads, num_keys): 0 for those behind all positions, which no row sees."""
    return F.pad(bias[:, :num_keys], (0, max(num_keys - bias.shape[1], 0)))


def _attend_by_products(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    layer: AttentionLayer,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Compute `_attend` as two batched products, which for a few rows are faster than the operator that torch fuses.

    mask: (batch, kv heads, 1 or rows, keys) float32, what is added to the scores.
    """
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
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend over (batch, kv heads, rows, dim) with a mask; in plain operators for a soft cap, sinks or a bias.

    The rows of a kv head are those of its query heads, one head after the other. bias: (1, kv heads, rows, keys).
    """
    if layer.softcap is None and sinks is None and bias is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=layer.scale)
    scores = torch.matmul(query, keys.transpose(-1, -2)) * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.float() if bias is None else scores.float() + bias
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        column = sinks.float().view(keys.shape[1], -1, 1).repeat_interleave(query.shape[2] // layer.group, 1)
        scores = torch.cat([scores, column.expand(len(scores), -1, -1, 1)], -1)
    weights = scores.softmax(-1).to(values.dtype)
    return torch.matmul(weights[..., : keys.shape[2]], values)
