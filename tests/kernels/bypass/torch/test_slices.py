from types import ModuleType

import pytest
import torch

from peftserve.kernels.bypass.layout import Group, Segment
from peftserve.kernels.bypass.torch.factors import view_factors
from peftserve.kernels.bypass.torch.products import PLAIN
from peftserve.kernels.bypass.torch.slices import Slice, Way


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("rows", [3, 9])
def test_a_slice_adds_to_its_rows(kit: ModuleType, rows: int, gather: bool) -> None:
    group = Group(60, (33, 17), gather=gather)
    case = kit.Case((group,), device="cpu")
    case.add(0, {0: (5, 2)})
    base, layout = case.slots[0]
    x, y = case.input(0, rows), case.output(0, 1, rows)
    got = y.clone()
    Slice(view_factors(case.arena, base, group, layout[0]), 0.5, 0, 3, Way(PLAIN, PLAIN)).add_(x, [None, got])
    kit.assert_close("site 1", case.reference([Segment(0, 0.5, 0, 3)], 0, 1, x, y), got, 1e-6)
    assert torch.equal(got[3:], y[3:])
