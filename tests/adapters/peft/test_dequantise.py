"""Each format's function gives the matrix that its module multiplies by."""

from typing import Any

import pytest
import torch
from torch import nn

from peftserve.adapters.peft.dequantise import dequantiser
from peftserve.adapters.peft.plain import read_weight
from peftserve.adapters.sites import Site, SiteKind

SITE = Site("linear", SiteKind.LINEAR, 96, 40)


def check(linear: nn.Module, *, rounds: bool = False) -> None:
    """Check a module's matrix, by itself and as it is read by what its outputs say."""
    read = dequantiser(linear)
    assert read is not None
    got = read(linear).float()
    got = got if got.shape == (SITE.out_features, SITE.in_features) else got.T
    with torch.no_grad():
        expected = linear(torch.eye(SITE.in_features)).T
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=2e-3 if rounds else 1e-6)
    weight = read_weight(linear, SITE, torch.float32)
    assert weight is not None
    torch.testing.assert_close(weight.values, got, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("double", [False, True])
def test_4_bits_of_bitsandbytes(kind: str, double: bool) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = bnb.nn.Linear4bit(96, 40, bias=False, quant_type=kind, compress_statistics=double)
    linear.load_state_dict(nn.Linear(96, 40, bias=False).state_dict())
    linear.support_avx512bf16_for_cpu = False  # as an engine has it, or its codes would be laid out anew
    check(linear.to("cpu").requires_grad_(False).eval())


@pytest.mark.parametrize("run_before", [False, True])
def test_8_bits_of_bitsandbytes(run_before: bool) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = bnb.nn.Linear8bitLt(96, 40, bias=False, has_fp16_weights=False, threshold=6.0)
    linear.load_state_dict(nn.Linear(96, 40, bias=False).state_dict())
    linear = linear.to("cpu").requires_grad_(False).eval()
    if run_before:
        linear(torch.randn(3, 96))
    check(linear, rounds=True)


class FP8Linear(nn.Linear):
    """The parameters of transformers' class, whose product needs a GPU, and that product in plain torch."""

    def __init__(self, block_size: tuple[int, int] | None) -> None:
        super().__init__(96, 40, bias=False, device="meta")
        self.block_size = block_size
        self.weight = nn.Parameter(torch.randn(40, 96).to(torch.float8_e4m3fn), requires_grad=False)
        scales = torch.tensor(0.7) if block_size is None else torch.rand(-(-40 // 32), -(-96 // 64)) + 0.1
        self.weight_scale_inv = nn.Parameter(scales, requires_grad=False)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.block_size is None:
            return input @ self.weight.float().T * self.weight_scale_inv
        tiles = [
            sum(
                x @ w.float().T * scale
                for x, w, scale in zip(input.split(64, -1), row.split(64, -1), scales, strict=True)
            )
            for row, scales in zip(self.weight.split(32), self.weight_scale_inv, strict=True)
        ]
        return torch.cat(tiles, -1)  # type: ignore[arg-type]


@pytest.mark.parametrize("block_size", [None, (32, 64)])
def test_tiles_of_fp8(block_size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    check(FP8Linear(block_size))


class BaseQuantLinear(nn.Module):
    """What gptqmodel's classes derive from."""


class GroupedLinear(BaseQuantLinear):
    """4-bit codes with a scale and a zero for each group of inputs, which dequantise to (in_features, out_features)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(0, 16, (96, 40)))
        self.register_buffer("scales", torch.rand(3, 40) + 0.1)

    def dequantize_weight(self) -> torch.Tensor:
        scales = self.get_buffer("scales").repeat_interleave(32, 0)
        return (self.get_buffer("codes") - 8) * scales

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.dequantize_weight()


def test_a_module_that_dequantises_itself_the_other_way_round() -> None:
    torch.manual_seed(0)
    check(GroupedLinear())


def test_a_claim_that_the_outputs_do_not_bear_out_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that has changed its layout since is read by what its modules give."""
    torch.manual_seed(0)
    linear = FP8Linear((32, 64))
    expected = linear(torch.eye(96)).T
    linear.block_size = (20, 96)  # scales of other tiles
    monkeypatch.setattr(FP8Linear, "forward", lambda self, x: x @ expected.T)
    weight = read_weight(linear, SITE, torch.float32)
    assert weight is not None
    torch.testing.assert_close(weight.values, expected)


def test_an_unknown_class_has_none() -> None:
    assert dequantiser(nn.Linear(2, 2)) is None
