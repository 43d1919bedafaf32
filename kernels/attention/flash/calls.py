"""Attention of long spans by torch's own flash kernels, which take several sequences one after the other.

They know grouped heads and windows. Soft caps, sinks, and values of another dim than keys they do not.
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
    """Sequences one after the other, whose last keys belong to their rows.

    ends, key_ends: (sequences + 1,) int32, where each one's rows and keys end, from 0 on. most_rows, most_keys: of one.
    """

    ends: torch.Tensor
    key_ends: torch.Tensor
    most_rows: int
    most_keys: int


class Flash(Protocol):
    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packed: Packed, layer: AttentionLayer
    ) -> torch.Tensor:
        """query: (rows, heads, dim); key, value: (keys, kv_heads, dim); columns adjoin. Returns (rows, heads, dim).

        Causal, within the layer's window. Rows of a sequence without keys may be anything.
        """


def takes(layer: AttentionLayer) -> bool:
    """Whether flash kernels know all that the layer asks."""
    plain = layer.softcap is None and not layer.sinks
    return plain and layer.key_dim == layer.value_dim <= MOST_DIM and layer.key_dim % 8 == 0


def torch_flash(dtype: torch.dtype, device: torch.device) -> Flash | None:
    """torch's `varlen_attn`; None where it has none: on ROCm, before sm_80, for other types than those of 16 bits."""
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
    """From torch 2.12 on it must be told of grouped heads, which it could run before as well."""
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
    """The same one by one, on any device: the plain form."""
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
