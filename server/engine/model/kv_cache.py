"""The pages of keys and values on the device, layer by layer."""

from collections.abc import Mapping

import torch

from peftserve.kernels.attention.layout import AttentionLayer


def elements_per_token(layer: AttentionLayer) -> int:
    """Return how many numbers a layer's keys and values of one token are."""
    return layer.kv_heads * (layer.key_dim + layer.value_dim)


class KVCache:
    """All pages of one model. keys[layer]: (pages, page_size, heads, key_dim); values likewise."""

    def __init__(
        self,
        layers: Mapping[int, AttentionLayer],
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.keys = {
            index: torch.zeros(num_pages, page_size, layer.kv_heads, layer.key_dim, dtype=dtype, device=device)
            for index, layer in layers.items()
        }
        self.values = {
            index: torch.zeros(num_pages, page_size, layer.kv_heads, layer.value_dim, dtype=dtype, device=device)
            for index, layer in layers.items()
        }

    def clear(self, pages: torch.Tensor) -> None:
        """Zero the pages (count,) in every layer.

        What a masked position holds still counts: 0 · NaN is NaN, and one that overflowed may lie in a reused page.
        """
        if pages.numel():
            for tensor in (*self.keys.values(), *self.values.values()):
                tensor.index_fill_(0, pages, 0)

    def write(self, layer: int, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store keys and values (tokens, heads, dim) at flat positions `rows`: page · page_size + offset."""
        self.keys[layer].flatten(0, 1).index_copy_(0, rows, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, rows, values)
