"""Which implementation a device gets. A GPU is simulated on a CPU, where the kernels are interpreted."""

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from peftserve.kernels.attention import factory as paged_attention
from peftserve.kernels.attention.factory import _on_gpu, make_attention_backend
from peftserve.kernels.attention.flash import choice as flash_choice
from peftserve.kernels.attention.flash.backend import MixedAttention
from peftserve.kernels.attention.flash.calls import sdpa_flash
from peftserve.kernels.attention.layout import AttentionLayer, Limits
from peftserve.kernels.attention.torch.backend import TorchAttention
from peftserve.kernels.attention.triton.backend import TritonAttention

LAYER = AttentionLayer(heads=4, kv_heads=2, key_dim=16, value_dim=16, scale=0.3)
CAPPED = replace(LAYER, softcap=2.0)
LIMITS = Limits(40, 4, 100)
CPU = torch.device("cpu")


def test_a_cpu_runs_torch() -> None:
    assert isinstance(make_attention_backend([LAYER], 16, torch.float32, CPU, LIMITS), TorchAttention)


@pytest.mark.parametrize(
    ("layers", "least", "kind"),
    [
        ([LAYER, CAPPED], 6, MixedAttention),
        ([LAYER, CAPPED], None, TritonAttention),
        ([CAPPED], 6, TritonAttention),
    ],
    ids=["faster", "slower", "unknown to it"],
)
def test_flash_kernels_run_what_they_know_where_they_are_faster(
    kit: ModuleType, layers: list[AttentionLayer], least: int | None, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[AttentionLayer]()

    def choose(found: list[AttentionLayer], *_: object) -> int | None:
        asked.extend(found)
        return least

    monkeypatch.setattr(paged_attention, "torch_flash", lambda *_: sdpa_flash)
    monkeypatch.setattr(flash_choice, "choose_least_rows", choose)
    backend = _on_gpu(layers, 16, torch.float32, torch.device(kit.DEVICE), LIMITS)
    assert isinstance(backend, kind)
    assert asked == [layer for layer in layers if layer.softcap is None]
    case = kit.AttentionCase(layers[0])
    kit.check_attention(case, backend, case.spans([(1, 20), (12, 9)]), None, 3e-6)


def test_without_flash_kernels_our_own_run_all() -> None:
    assert isinstance(_on_gpu([LAYER], 16, torch.float32, CPU, LIMITS), TritonAttention)


def test_what_is_gathered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the longest sequence and a step's rows, and in bytes of keys and values."""
    monkeypatch.setattr(paged_attention, "torch_flash", lambda *_: sdpa_flash)
    monkeypatch.setattr(flash_choice, "choose_least_rows", lambda *_: 6)
    for limit, tokens in ((1 << 20, 40 + 100), (64 * 2 * 2 * 16 * 4, 64)):
        monkeypatch.setattr(paged_attention, "GATHERED_BYTES", limit)
        backend = _on_gpu([LAYER], 16, torch.float32, CPU, LIMITS)
        assert isinstance(backend, MixedAttention)
        assert backend._gathered.shape == (2, tokens * 2 * 16)
