"""The pages of keys and values on the device, layer by layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVShape:
    """One layer's keys and values for one token."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def elements_per_token(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim)


class KVCache:
    """keys[layer]: (pages, page_size, heads, key_dim); values likewise."""

    def __init__(
        self, shapes: Mapping[int, KVShape], num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.keys = {
            layer: torch.zeros(num_pages, page_size, s.num_heads, s.key_dim, dtype=dtype, device=device)
            for layer, s in shapes.items()
        }
        self.values = {
            layer: torch.zeros(num_pages, page_size, s.num_heads, s.value_dim, dtype=dtype, device=device)
            for layer, s in shapes.items()
        }

    def num_pages_of(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

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

    def read(self, layer: int, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (batch, heads, tokens, dim) of the pages (batch, pages per sequence), in order."""
        return _gather(self.keys[layer], pages), _gather(self.values[layer], pages)


def _gather(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    batch, count = pages.shape
    gathered = cache.index_select(0, pages.flatten())
    return gathered.view(batch, count * cache.shape[1], cache.shape[2], cache.shape[3]).transpose(1, 2)
