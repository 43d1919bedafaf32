"""A module's weight is read from whatever form it is stored in, or not at all."""

import types
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from peftserve.adapters.peft.plain import has_plain_parameters, is_plain, is_plain_linear, read_weight
from peftserve.adapters.sites import Site, SiteKind

WIDTH_IN, WIDTH_OUT = 40, 24
SITE = Site("m", SiteKind.LINEAR, WIDTH_IN, WIDTH_OUT)


def linear(dtype: torch.dtype = torch.float32, bias: float = 0.0) -> nn.Linear:
    torch.manual_seed(0)
    made = nn.Linear(WIDTH_IN, WIDTH_OUT, bias=bool(bias)).to(dtype).requires_grad_(False)
    if bias:
        made.bias.mul_(bias)
    return made


class Packed(nn.Module):
    """Codes of 8 bits under a name of its own: only its products show the weight."""

    def __init__(self, bias: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight = linear(dtype).weight
        self.in_features, self.out_features = WIDTH_IN, WIDTH_OUT
        self.scale = nn.Parameter(weight.abs().amax(1, keepdim=True) / 127, requires_grad=False)
        self.qweight = nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = nn.Parameter(linear(dtype, bias).bias, requires_grad=False) if bias else None

    def numbers(self) -> torch.Tensor:
        return self.qweight.to(self.scale.dtype) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.numbers(), self.bias)


class Rounding(nn.Linear):
    """Plain parameters, but a product with inputs of 8 bits."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(-1, keepdim=True) / 127
        return F.linear((x / scale).round() * scale, self.weight, self.bias)


class Scaled(nn.Linear):
    """Holds numbers that look plain, and multiplies by others."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight * 3, self.bias)


class Broken(Packed):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError("as packages do")


def test_types_and_classes_of_tensors() -> None:
    assert all(is_plain(torch.zeros(2, dtype=dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert not any(is_plain(torch.zeros(2, dtype=dtype)) for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn))
    assert is_plain(nn.Parameter(torch.zeros(2)))
    assert not is_plain(torch.zeros(2, 2).to_sparse())
    assert not is_plain(None)
    assert not is_plain(torch.Tensor._make_subclass(type("Codes", (torch.Tensor,), {}), torch.zeros(2)))


def test_only_an_untouched_linear_is_a_plain_one() -> None:
    assert is_plain_linear(linear())
    assert not is_plain_linear(Rounding(4, 4))
    own = linear()
    own.forward = types.MethodType(nn.Linear.forward, own)  # type: ignore[method-assign]
    assert not is_plain_linear(own)
    hooked = linear()
    hooked.register_forward_pre_hook(lambda module, args: None)
    assert not is_plain_linear(hooked)
    codes = linear()
    codes.weight = nn.Parameter(codes.weight.to(torch.float8_e4m3fn), requires_grad=False)
    assert not is_plain_linear(codes)
    assert not has_plain_parameters(codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [0.0, 1.0, 400.0])
def test_codes_are_read_off_what_the_module_does(dtype: torch.dtype, bias: float) -> None:
    """A large bias takes no digits from them."""
    module = Packed(bias, dtype)
    weight = read_weight(module, SITE, dtype)
    assert weight is not None
    assert not weight.rounds_inputs
    torch.testing.assert_close(weight.values, module.numbers().float())
    assert module.bias is None or module.bias.abs().max() > 0


def test_weights_in_float8_are_never_taken_without_their_scales(oracle: ModuleType) -> None:
    module = oracle.CodesLinear(nn.Linear(WIDTH_IN, WIDTH_OUT))
    codes = (linear().weight * 448).to(torch.float8_e4m3fn)
    module.weight = nn.Parameter(codes, requires_grad=False)
    module.weight_scale = nn.Parameter(torch.full((WIDTH_OUT, 1), 1 / 448), requires_grad=False)
    module.bias = None
    weight = read_weight(module, SITE, torch.float32)
    assert weight is not None
    torch.testing.assert_close(weight.values, module.numbers())


def test_a_class_of_tensors_says_itself_what_it_means(oracle: ModuleType) -> None:
    codes, scale = (linear().weight * 448).to(torch.float8_e4m3fn), torch.full((WIDTH_OUT, 1), 1 / 448)
    module = nn.Linear(WIDTH_IN, WIDTH_OUT, bias=False)
    module._parameters["weight"] = oracle.CodesTensor.of(codes, scale)
    assert not is_plain_linear(module)
    weight = read_weight(module, SITE, torch.float32)
    assert weight is not None
    torch.testing.assert_close(weight.values, codes.float() * scale)


@pytest.mark.parametrize(("kind", "rounds"), [(nn.Linear, False), (Rounding, True)])
def test_whether_inputs_are_rounded(kind: Callable[..., nn.Linear], rounds: bool) -> None:
    module = kind(WIDTH_IN, WIDTH_OUT)
    weight = read_weight(module, SITE, torch.float32)
    assert weight is not None
    assert weight.rounds_inputs == rounds
    torch.testing.assert_close(weight.values, module.weight.detach())


def test_numbers_that_a_module_does_not_multiply_by_are_not_its_weight() -> None:
    module = Scaled(WIDTH_IN, WIDTH_OUT)
    weight = read_weight(module, SITE, torch.float32)
    assert weight is not None
    torch.testing.assert_close(weight.values, 3 * module.weight.detach())
    embedding = nn.Embedding(30, 8)
    scaled = Site("e", SiteKind.EMBEDDING, 30, 8, embed_scale=2.0)
    embedding.register_forward_hook(lambda module, args, output: 2 * output)
    weight = read_weight(embedding, scaled, torch.float32)
    assert weight is not None
    assert read_weight(embedding, Site("e", SiteKind.EMBEDDING, 30, 8), torch.float32) is None


def test_what_does_not_run_is_not_read() -> None:
    assert read_weight(Broken(), SITE, torch.float32) is None


def test_transposed_modules() -> None:
    class Own(Conv1D):
        pass

    site = Site("c", SiteKind.LINEAR, WIDTH_IN, WIDTH_OUT, transposed=True)
    for kind in (Conv1D, Own):
        module = kind(WIDTH_OUT, WIDTH_IN)
        weight = read_weight(module, site, torch.float32)
        assert weight is not None
        assert weight.values.shape == (WIDTH_IN, WIDTH_OUT)
