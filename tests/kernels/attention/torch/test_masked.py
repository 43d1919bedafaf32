"""Masked attention over contiguous keys, row by row against the formula in float64."""

from types import ModuleType

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.kernels.attention.torch.masked import Decodes, Prefill, attend_decodes, attend_prefill

LAYERS = [
    AttentionLayer(4, 2, 16, 24, 0.3),
    AttentionLayer(6, 2, 16, 8, 0.3, window=5),
    AttentionLayer(6, 3, 16, 8, 0.3, window=9, softcap=2.0, sinks=True),
    AttentionLayer(6, 2, 16, 8, 0.3, window=5, restarts=True),
]
NO_PAGES = torch.zeros(1, 1, dtype=torch.int64)


def expected(
    layer: AttentionLayer, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, sinks: torch.Tensor | None
) -> torch.Tensor:
    """Return the heads of the row at the last key. query: (heads, dim). keys, values: (kv heads, keys, dim)."""
    seen = layer.window or keys.shape[1]
    first = max(keys.shape[1] - ((keys.shape[1] - 1) % seen + 1 if layer.restarts else seen), 0)
    k, v = (cache[:, first:].double().repeat_interleave(layer.group, 0) for cache in (keys, values))
    scores = torch.einsum("hd,hkd->hk", query.double(), k) * layer.scale
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None]], 1)
    return torch.einsum("hk,hkd->hd", scores.softmax(1)[:, : k.shape[1]], v)


def drawn(layer: AttentionLayer, batch: int, rows: int, keys: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, rows, layer.heads, layer.key_dim), *((batch, layer.kv_heads, keys, d) for d in dims(layer))]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    return *tensors, torch.randn(layer.heads, generator=generator).to(dtype)


def dims(layer: AttentionLayer) -> tuple[int, int]:
    return layer.key_dim, layer.value_dim


@pytest.mark.parametrize("layer", LAYERS, ids=["plain", "window", "all", "window that restarts"])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_single_rows_see_as_many_keys_as_each_has(
    kit: ModuleType, layer: AttentionLayer, dtype: torch.dtype, tol: float
) -> None:
    lengths = torch.tensor([1, 11, 20])
    query, keys, values, logits = drawn(layer, len(lengths), 1, 21, dtype)
    sinks = logits if layer.sinks else None
    got = attend_decodes(Decodes(None, lengths, None, NO_PAGES), query[:, 0], keys, values, layer, sinks)
    rows = zip(query[:, 0], keys, values, lengths.tolist(), strict=True)
    kit.assert_close(
        "decodes", torch.stack([expected(layer, q, k[:, :n], v[:, :n], sinks) for q, k, v, n in rows]), got, tol
    )


@pytest.mark.parametrize("layer", LAYERS, ids=["plain", "window", "all", "window that restarts"])
@pytest.mark.parametrize("context", [0, 6])
def test_rows_of_a_span_see_one_key_more_each(kit: ModuleType, layer: AttentionLayer, context: int) -> None:
    span = Prefill(2, 2 + 7, context, NO_PAGES)
    query, keys, values, logits = drawn(layer, 1, 7, span.total + 3, torch.float32)
    keys[:, :, span.total :] = values[:, :, span.total :] = float("nan")
    sinks = logits if layer.sinks else None
    got = attend_prefill(span, query[0].transpose(0, 1), keys, values, layer, sinks)
    wanted = [
        expected(layer, q, keys[0, :, : context + i], values[0, :, : context + i], sinks)
        for i, q in enumerate(query[0], 1)
    ]
    kit.assert_close("prefill", torch.stack(wanted, 1), got, 1e-5)
