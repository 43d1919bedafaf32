"""Both implementations against the formula in float64."""

from types import ModuleType
from typing import Any

import pytest
import torch

from peftserve.kernels.ops.experts.combinations import all_combinations
from peftserve.kernels.ops.experts.factory import ExpertTerms, expert_terms
from peftserve.kernels.ops.experts.triton_backend import Blocks, triton_terms
from peftserve.kernels.ops.site_plan import OpSegment

CPU = torch.device("cpu")
SMALL = Blocks(block_m=16, block_k=32, block_n=64, least_chunk=64)
KINDS = ["torch", "triton"]
SHARES = {
    "one each": [("a", 1.0, 0, 1), ("b", 0.5, 1, 2), ("c", 1.0, 2, 3), ("d", 2.0, 3, 4), ("a", 1.0, 6, 7)],
    "one of many rows": [("b", 1.0, 0, 24)],
    "other weights": [("a", 1.0, 0, 9), ("a", -0.5, 9, 20), ("d", 1.0, 21, 22)],
    "mixtures": [("a", 0.3, 0, 5), ("b", 0.7, 0, 5), ("c", 0.2, 3, 9), ("c", 0.3, 3, 9), ("d", 1.0, 4, 10)],
}


def made(kind: str, segments: list[OpSegment], rows: int) -> ExpertTerms:
    if kind == "torch":
        return expert_terms({"": segments}, rows, CPU)[""]
    return triton_terms(all_combinations({"": segments}, rows), CPU, SMALL)[""]


def a_case(moe: ModuleType, experts: int, **options: Any) -> Any:
    case = moe.Case(experts, **options)
    case.add("a", up_proj=8, down_proj=8)
    case.add("b", up_proj=1, down_proj=32)
    case.add("c", down_proj=5)
    case.add("d", up_proj=16, down_proj=20)
    return case


@pytest.mark.slow
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_routing(moe: ModuleType, kind: str, shares: list[tuple[str, float, int, int]]) -> None:
    case = a_case(moe, 5)
    rows = max(end for *_, end in shares) + 3
    segments = case.segments(shares)
    for experts in (
        case.routing_of(rows, 2),
        torch.full((rows, 1), 4),  # all tokens to one expert, and experts without tokens
        torch.tensor([[1, 1, 3]]).expand(rows, -1),  # one expert twice
    ):
        moe.check(case, made(kind, segments, rows), segments, experts, 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bits_on_a_cpu(moe: ModuleType, dtype: torch.dtype) -> None:
    case = a_case(moe, 3, dtype=dtype)
    segments = case.segments(SHARES["mixtures"])
    moe.check(case, made("torch", segments, 16), segments, case.routing_of(16, 2), 1e-2)


def test_16_bits_on_tensor_cores_lose_nothing_of_h(moe: ModuleType) -> None:
    """What remains is that of rounding y once, 2 to the power of -12 or so."""
    case = a_case(moe, 3, dtype=torch.float16)
    segments = case.segments(SHARES["mixtures"])
    moe.check(case, made("triton", segments, 16), segments, case.routing_of(16, 2), 3e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_at_odd_places(moe: ModuleType, kind: str) -> None:
    case = a_case(moe, 3, alignment=1)
    segments = case.segments(SHARES["one each"])
    moe.check(case, made(kind, segments, 9), segments, case.routing_of(9, 2), 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_step_gives_the_same_bits(moe: ModuleType, kind: str) -> None:
    case = a_case(moe, 4)
    segments = case.segments(SHARES["mixtures"])
    experts, results = case.routing_of(16, 2), []
    x, y = case.randn(32, 60), case.randn(32, 72)
    for _ in range(2):
        terms, got = made(kind, segments, 16), y.clone()
        terms.add_("up_proj", x, got, terms.route(experts, 4))
        results.append(got)
    assert torch.equal(*results)
    assert not torch.equal(results[0], y)
