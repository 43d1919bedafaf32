"""Cases for the terms of experts: adapters of any rank in one memory, rows with any of them, any routing."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType

import pytest
import torch

from peftserve.kernels.ops.experts.factory import ExpertTerms
from peftserve.kernels.ops.experts.reference import naive_expert_delta
from peftserve.kernels.ops.formulas import Op
from peftserve.kernels.ops.site_plan import OpSegment

WIDTHS = {"up_proj": (60, 72), "down_proj": (72, 60)}


@dataclass
class Case:
    """Factors of adapters in one memory, and NaN around them. ops: by adapter, one for each of its parameters."""

    experts: int
    dtype: torch.dtype = torch.float32
    alignment: int = 8
    ops: dict[str, list[Op]] = field(default_factory=dict)
    widths: dict[str, tuple[int, int]] = field(default_factory=lambda: dict(WIDTHS))
    size: int = 1 << 20

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.arena = torch.full((self.size,), float("nan"), dtype=self.dtype)
        self._used = self.alignment

    def add(self, name: str, **ranks: int) -> None:
        """Write the factors of an adapter, of these ranks by parameter."""
        self.ops[name] = [self._op(parameter, rank) for parameter, rank in ranks.items()]

    def segments(self, shares: Sequence[tuple[str, float, int, int]]) -> list[OpSegment]:
        return [OpSegment(op, *share) for name, *share in shares for op in self.ops[name]]

    def randn(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.dtype)

    def routing_of(self, tokens: int, k: int) -> torch.Tensor:
        """Draw k different experts for each token."""
        drawn = torch.rand(tokens, self.experts, generator=self.generator)
        return drawn.topk(k, dim=1).indices

    def _op(self, parameter: str, rank: int) -> Op:
        width_in, width_out = self.widths[parameter]
        a = self._write(self.experts, rank, width_in)
        b = self._write(self.experts, width_out, rank)
        return Op("expert_low_rank", {"a": a, "b": b, "parameter": parameter})

    def _write(self, *shape: int) -> torch.Tensor:
        values = self.randn(*shape) / shape[-1] ** 0.5
        there = self.arena[self._used : self._used + values.numel()].view(shape)
        self._used += -(-values.numel() // self.alignment) * self.alignment
        return there.copy_(values)


def check(case: Case, terms: ExpertTerms, segments: Sequence[OpSegment], experts: torch.Tensor, tol: float) -> None:
    """Check both parameters against the reference, and pairs without an adapter bit for bit."""
    routing = terms.route(experts, case.experts)
    bare = torch.tensor(
        [not any(segment.start <= row < segment.end for segment in segments) for row in range(len(experts))]
    )
    for parameter in dict.fromkeys(segment.op.fields["parameter"] for segment in segments):
        width_in, width_out = case.widths[parameter]
        x, y = case.randn(experts.numel(), width_in), case.randn(experts.numel(), width_out)
        wanted = y.double() + naive_expert_delta(segments, parameter, x, experts)
        sorted_y = y[routing.order]
        terms.add_(parameter, x[routing.order], sorted_y, routing)
        got = routing.restored(sorted_y).flatten(0, 1)
        error = (got.double() - wanted).square().mean().sqrt() / wanted.square().mean().sqrt()
        assert error <= tol, f"{parameter}: relative error {error:.1e}"
        alone = bare.repeat_interleave(experts.shape[1])
        assert torch.equal(got[alone], y[alone])


@pytest.fixture(scope="session")
def moe() -> ModuleType:
    """Return this module to tests."""
    return sys.modules[__name__]
