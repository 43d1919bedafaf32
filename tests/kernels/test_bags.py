from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from peftserve.kernels.bags import most_dots, most_sums
from peftserve.kernels.factors import Factors, view_factors
from peftserve.kernels.layout import Group, GroupLayout, Segment
from peftserve.kernels.torch_bypass import TorchBypass


def factors(rank: int, dtype: torch.dtype, *, gather: bool = False, base: int = 0) -> Factors:
    group = Group(64, (32,), gather=gather)
    return view_factors(torch.zeros(1 << 17, dtype=dtype), base, group, GroupLayout(0, (rank,), (rank * 64,)))


@pytest.mark.parametrize("most", [most_dots, most_sums])
def test_small_factors_stay_in_the_bags_for_longer(most: Callable[[Factors], int]) -> None:
    assert most(factors(8, torch.bfloat16)) > most(factors(512, torch.bfloat16)) >= 1
    assert most(factors(8, torch.bfloat16)) > most(factors(8, torch.float32)) >= 5


@pytest.mark.parametrize("most", [most_dots, most_sums])
def test_what_bags_cannot_read_well_never_is_in_them(most: Callable[[Factors], int]) -> None:
    assert most(factors(8, torch.float32, gather=True)) == 0
    assert most(factors(8, torch.float32, base=8)) == 0


def test_segments_of_all_three_kinds_in_one_group(kit: ModuleType) -> None:
    groups = (Group(64, (96, 32)),)
    case = kit.Case(groups, device="cpu")
    for slot, ranks in enumerate([(4, 4), (100, 90), (3, 0), (512, 300)]):
        case.add(slot, {0: ranks})
    backend = TorchBypass(case.arena, groups)
    case.attach_all(backend)
    segments = [Segment(0, 0.5, 0, 3), Segment(1, 0.5, 2, 9), Segment(2, 2.0, 8, 12), Segment(3, -1.0, 5, 40)]
    backend.begin(segments, [])
    plan = backend._plans[0]
    assert plan.bags is not None
    assert plan.bags.dots is not None
    assert [s.start for s in plan.slices] == [5]
    assert [s.start for s in plan.bags.products] == [2]
    kit.check_step(case, backend, segments, [], 41, 1e-6)
