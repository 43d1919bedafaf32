"""Paged attention in torch operators, against the formulas."""

from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.attention.layout import AttentionLayer, Span
from peftserve.kernels.attention.torch.backend import TorchAttention

MIXED = [(1, 0), (1, 15), (1, 90), (20, 0), (9, 33), (1, 400)]
"""(rows, context) of each sequence: decodes of lengths far apart, and prefills."""


def make(kit: ModuleType, layer: AttentionLayer) -> tuple[Any, TorchAttention]:
    case, backend = (
        kit.AttentionCase(layer),
        TorchAttention([layer], 16, torch.float32, torch.device(kit.DEVICE)),
    )
    assert backend.reads_whole_pages
    for cache in (case.keys, case.values):
        cache.nan_to_num_()
    return case, backend


@pytest.mark.parametrize(
    "layer",
    [
        AttentionLayer(4, 2, 16, 16, 0.3),
        AttentionLayer(7, 1, 80, 96, 0.1, window=17),
        AttentionLayer(8, 2, 16, 128, 0.2, softcap=4.0),
        AttentionLayer(4, 2, 128, 16, 0.1, sinks=True),
        AttentionLayer(4, 2, 32, 32, 0.2, window=15, restarts=True),
        AttentionLayer(6, 3, 32, 16, 0.2, biased=True),
        AttentionLayer(20, 1, 16, 16, 0.2, window=40, softcap=3.0, sinks=True, biased=True),
        AttentionLayer(6, 2, 16, 8, 0.3, window=40, softcap=2.0, sinks=True),
    ],
    ids=["plain", "window", "softcap", "sinks", "window that restarts", "biased", "biased and all", "all"],
)
@pytest.mark.parametrize("kind", ["decode", "mixed"])
def test_any_layer(kit: ModuleType, layer: AttentionLayer, kind: str) -> None:
    case, backend = make(kit, layer)
    kit.check_attention(case, backend, case.spans([s for s in MIXED if kind == "mixed" or s[0] == 1]), None, 1e-5)


def test_rows_beyond_the_step_give_zeros_and_write_nothing(kit: ModuleType) -> None:
    case, backend = make(kit, AttentionLayer(4, 2, 16, 16, 0.3))
    kit.check_attention(case, backend, case.spans([(1, 3), (1, 20)]), 5, 1e-5)


def test_what_cannot_be_is_refused(kit: ModuleType) -> None:
    case, backend = make(kit, AttentionLayer(4, 2, 16, 16, 0.3))
    with pytest.raises(ValueError, match="more than the capacity of 1"):
        backend.begin(case.spans([(2, 3)]), capacity=1)
    with pytest.raises(ValueError, match="more positions than its pages hold"):
        backend.begin([Span(0, 1, case.page_size + 1, [0])])
