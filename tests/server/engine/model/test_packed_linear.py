"""Packed linears give what plain ones give, and only where they can."""

import copy
import platform
import types
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn

from peftserve.server.engine.model import packed_linear
from peftserve.server.engine.model.packed_linear import pack_linears
from peftserve.server.engine.private.torch_private import multiplies_bfloat16

needs_bf16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor has no bfloat16 products")


needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="measured on x86 only")
DTYPES = [pytest.param(torch.bfloat16, marks=needs_bf16), pytest.param(torch.float32, marks=needs_x86)]
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 1e-5}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The models here are too small to gain anything."""
    monkeypatch.setattr(packed_linear, "SMALL_WEIGHT", 1)


def make_model(dtype: torch.dtype) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 160, bias=True), nn.Linear(160, 63, bias=False))
    return model.to(dtype).requires_grad_(False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 16, 63, 300])
def test_gives_the_plain_result(rows: int, dtype: torch.dtype) -> None:
    plain = make_model(dtype)
    packed = copy.deepcopy(plain)
    x = torch.randn(1, rows, 96).to(dtype)
    with torch.inference_mode():
        assert pack_linears(packed.modules(), 1 << 30) == sum(p.nbytes for p in plain.parameters() if p.dim() == 2)
        torch.testing.assert_close(packed(x), plain(x), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_leaves_the_weights_as_they_are(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        pack_linears(model.modules(), 1 << 30)
        model(torch.randn(3, 96).to(dtype))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packs_nothing_without_memory_to_spare(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    assert pack_linears(model.modules(), 100) == 0
    assert "forward" not in vars(model[0])


def test_leaves_small_float32_weights_and_other_types_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_linear, "SMALL_WEIGHT", 160 * 96)
    model = make_model(torch.float32)
    pack_linears(model.modules(), 1 << 30)
    assert "forward" not in vars(model[1])
    assert pack_linears(make_model(torch.float64).modules(), 1 << 30) == 0


def own_forward(linear: nn.Linear, oracle: ModuleType) -> None:
    linear.forward = types.MethodType(nn.Linear.forward, linear)  # type: ignore[method-assign]


def own_tensor(linear: nn.Linear, oracle: ModuleType) -> None:
    codes = oracle.CodesTensor.of(linear.weight.detach().to(torch.float8_e4m3fn), torch.ones(160, 1))
    linear._parameters["weight"] = codes


@pytest.mark.parametrize("change", [own_forward, own_tensor])
def test_quantised_linears_are_left_alone(change: Callable[..., None], oracle: ModuleType) -> None:
    """Whose product is not that of their parameters, though their class and type say so."""
    model = make_model(torch.float32)
    change(model[0], oracle)
    own = vars(model[0]).get("forward")
    pack_linears([model[0]], 1 << 30)
    assert vars(model[0]).get("forward") is own
