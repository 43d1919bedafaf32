"""Attention of long spans by torch's own flash kernels, which take several sequences one after the other.

They support grouped heads and sliding windows, but no windows that restart, no soft caps, no sinks, no biases, and
no values of another dim than keys.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ..layout import AttentionLayer

MOST_DIM = 256  # of a head
LEAST_CAPABILITY = (8, 0)


class Packed(NamedTuple):
    """Sequences one after the other. The rows of each are the queries of its last keys.

    ends, key_ends: (sequences + 1,) int32, where the rows and the keys of each end, beginning with 0. most_rows,
    most_keys: of one sequence.
    """

    ends: torch.Tensor
    key_ends: torch.Tensor
    most_rows: int
    most_keys: int


class Flash(Protocol):
    """A flash kernel behind one signature."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, layer: AttentionLayer
    ) -> torch.Tensor:
        """Attend causally, within the layer's window. Rows of a sequence without keys may be anything.

        query: (rows, heads, dim); key, value: (keys, kv_heads, dim); columns adjoin. Returns (rows, heads, dim).
        """


def supports(layer: AttentionLayer) -> bool:
    """Return whether flash kernels support all that the layer needs."""
    plain = layer.softcap is None and not (layer.sinks or layer.restarts or layer.biased)
    return plain and layer.key_dim == layer.value_dim <= MOST_DIM and layer.key_dim % 8 == 0


def torch_flash(dtype: torch.dtype, device: torch.device) -> Flash | None:
    """Return torch's `varlen_attn`, or None on ROCm, before sm_80, and for other types than those of 16 bits."""
    if device.type != "cuda" or torch.version.hip or dtype.itemsize != 2:
        return None
    if torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return flash_of(varlen_attn)


def flash_of(varlen_attn: Callable[..., Any]) -> Flash:
    """Wrap `varlen_attn`, which from torch 2.12 on must be told of grouped heads, though it could run them before."""
    grouped = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def flash(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, layer: AttentionLayer
    ) -> torch.Tensor:
        before = -1 if layer.window is None else layer.window - 1
        result: torch.Tensor = varlen_attn(
            query, key, value, *packed, scale=layer.scale, window_size=(before, 0), **grouped
        )
        return result

    return flash


def sdpa_flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, layer: AttentionLayer
) -> torch.Tensor:
    """Attend to one sequence after the other, on any device: the plain form of a flash kernel."""
    out = torch.zeros_like(query)
    ends, key_ends = packed.ends.tolist(), packed.key_ends.tolist()
    for begin, end, first, last in zip(ends, ends[1:], key_ends, key_ends[1:], strict=False):
        if first < last:
            place = torch.arange(last - first, device=query.device)
            row = place[len(place) - (end - begin) :, None]
            seen = (place <= row) & (place > row - (layer.window or len(place)))
            q, k, v = (t.transpose(0, 1)[None] for t in (query[begin:end], key[first:last], value[first:last]))
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=layer.scale, enable_gqa=True)
            out[begin:end] = found[0].transpose(0, 1)
    return out
