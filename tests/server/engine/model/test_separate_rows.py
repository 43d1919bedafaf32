"""Linears whose rows depend on each other give each sequence what they give it alone."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.separate_rows import StepSpans, run_separately


class Shared(nn.Linear):
    """Divides all rows of a call by the largest number in any."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input / input.abs().amax())


OFFSETS = [0, 5, 6, 7, 20]


@pytest.mark.parametrize("offsets", [OFFSETS, range(21), [0, 20]])
@torch.no_grad()
def test_each_span_is_on_its_own(offsets: list[int]) -> None:
    linear, x = Shared(8, 6), torch.randn(1, 20, 8)
    alone = torch.cat([linear(x[0, begin:end]) for begin, end in pairwise(offsets)])
    spans = StepSpans()
    run_separately([linear], spans)
    spans.offsets = offsets
    assert torch.equal(linear(x), alone[None])


@torch.no_grad()
def test_an_input_that_is_no_whole_step_is_of_single_rows() -> None:
    linear, x = Shared(8, 6), torch.randn(3, 8)
    alone = torch.cat([linear(row[None]) for row in x])
    spans = StepSpans()
    run_separately([linear], spans)
    spans.offsets = OFFSETS
    assert torch.equal(linear(x), alone)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("threshold", [6.0, 1.0, 0.0])
@torch.no_grad()
def test_llm_int8_in_one_call_is_what_it_is_span_by_span(threshold: float, bias: bool) -> None:
    bnb: Any = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    linear = bnb.nn.Linear8bitLt(64, 48, bias=bias, has_fp16_weights=False, threshold=threshold)
    plain = nn.Linear(64, 48, bias=bias)
    linear.load_state_dict(plain.state_dict())
    linear = linear.to("cpu").requires_grad_(False).eval()
    x = 2.5 * torch.randn(1, 20, 64)
    alone = torch.cat([linear(x[0, begin:end]) for begin, end in pairwise(OFFSETS)])
    spans = StepSpans()
    run_separately([linear], spans)
    spans.offsets = OFFSETS
    torch.testing.assert_close(linear(x)[0], alone, rtol=0, atol=2e-5)
