"""Packed linears give what plain ones give, and only where they can."""

import copy

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.packed_linear import pack_linears

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bfloat16 products"
)


def make_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 160, bias=True), nn.Linear(160, 63, bias=False))
    return model.to(dtype).requires_grad_(False)


@needs_bf16
@pytest.mark.parametrize("rows", [1, 2, 16, 63, 300])
def test_gives_the_plain_result(rows: int) -> None:
    plain = make_model(torch.bfloat16)
    packed = copy.deepcopy(plain)
    x = torch.randn(1, rows, 96).bfloat16()
    with torch.inference_mode():
        assert pack_linears(packed.modules(), 1 << 30) == sum(p.nbytes for p in plain.parameters() if p.dim() == 2)
        torch.testing.assert_close(packed(x), plain(x), rtol=0.02, atol=0.02)


@needs_bf16
def test_leaves_the_weights_as_they_are() -> None:
    model = make_model(torch.bfloat16)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        pack_linears(model.modules(), 1 << 30)
        model(torch.randn(3, 96).bfloat16())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_packs_nothing_without_memory_to_spare() -> None:
    model = make_model(torch.bfloat16)
    assert pack_linears(model.modules(), 100) == 0
    assert "forward" not in vars(model[0])


def test_leaves_float32_alone() -> None:
    model = make_model(torch.float32)
    assert pack_linears(model.modules(), 1 << 30) == 0
    assert "forward" not in vars(model[0])
