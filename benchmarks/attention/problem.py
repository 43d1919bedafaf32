"""The problem of the attention benchmark: a step of one layer over caches of random keys and values, and its floor."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from peftserve.kernels.attention.layout import AttentionLayer, Limits, Span
from peftserve.kernels.attention.plan import positions_of, span_arrays
from peftserve.kernels.attention.reference import naive_attend

from ..kernels.roofline import LeastWork

PAGE_SIZE = 16

Sequences = Sequence[tuple[int, int]]  # (rows, context) of each
Attend = Callable[[int], torch.Tensor]  # of layer i: (rows, heads, dim)


@dataclass
class AttentionProblem:
    """A step of attention over `num_layers` caches with random keys and values of one shape.

    The step's own keys and values are in the caches already. query, key, value: the step's, (1, heads, rows, dim), the
    same for all layers. keys, values: the caches, (layers, pages, page size, heads, dim).
    """

    layer: AttentionLayer
    sequences: Sequences
    dtype: torch.dtype
    device: str
    num_layers: int
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = [-(-(rows + context) // PAGE_SIZE) for rows, context in self.sequences]
        free = torch.randperm(sum(counts)).tolist()
        for (rows, context), count in zip(self.sequences, counts, strict=True):
            pages = [free.pop() for _ in range(count)]
            self.spans.append(Span(sum(span.rows for span in self.spans), rows, rows + context, pages))
        cache = (self.num_layers, sum(counts), PAGE_SIZE, self.layer.kv_heads)
        self.keys = self._randn(*cache, self.layer.key_dim)
        self.values = self._randn(*cache, self.layer.value_dim)
        rows = sum(span.rows for span in self.spans)
        places = torch.from_numpy(positions_of(span_arrays(self.spans, rows, PAGE_SIZE), PAGE_SIZE)).to(self.device)
        self.key, self.value = (
            self._randn(1, rows, self.layer.kv_heads, cache.shape[-1]).transpose(1, 2)
            for cache in (self.keys, self.values)
        )
        for new, caches in ((self.key, self.keys), (self.value, self.values)):
            caches.flatten(1, 2)[:, places] = new[0].transpose(0, 1)
        self.query = self._randn(1, rows, self.layer.heads, self.layer.key_dim).transpose(1, 2)

    def error(self, attend: Attend) -> float:
        """Return the last layer's error to float64, relative by the root mean square."""
        last = self.num_layers - 1
        expected = naive_attend(self.spans, self.layer, self.query, self.keys[last], self.values[last])
        return float((attend(last).double() - expected).norm() / expected.norm())

    def least_work(self) -> LeastWork:
        """Return that of one layer: every key and value that a sequence sees once, queries and outputs once."""
        layer, rows = self.layer, self.query.shape[2]
        seen = sum(span.total for span in self.spans) * layer.kv_heads * (layer.key_dim + layer.value_dim)
        own = rows * layer.heads * (layer.key_dim + layer.value_dim)
        pairs = sum(span.rows * (2 * span.total - span.rows + 1) // 2 for span in self.spans)
        flops = 2 * pairs * layer.heads * (layer.key_dim + layer.value_dim)
        return LeastWork(seen * self.dtype.itemsize, own * self.dtype.itemsize, flops)

    def limits(self) -> Limits:
        return Limits(self.query.shape[2], len(self.spans), max(span.total for span in self.spans))

    def _randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype)
