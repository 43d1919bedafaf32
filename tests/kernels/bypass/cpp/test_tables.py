"""Where the loop's lists begin and end. That what it adds is right is in `test_backend.py` and `test_backends.py`."""

from types import ModuleType

import pytest
import torch

from peftserve.kernels.bypass.cpp.loading import load_loop
from peftserve.kernels.bypass.cpp.tables import GroupTables, LoopCall, make_tiles, plan_loops
from peftserve.kernels.bypass.layout import Group, Segment
from peftserve.kernels.bypass.torch.factors import view_factors
from peftserve.kernels.bypass.torch.slices import LOOP, Slice, Way

GROUP = Group(576, (576, 192, 192))
WORK = [Segment(slot, 1.0, slot * 3, slot * 3 + 3) for slot in range(8)]


def slices(case: ModuleType, work: list[Segment], group: int = 0) -> list[Slice]:
    views = [view_factors(case.arena, case.slots[s.slot][0], GROUP, case.slots[s.slot][1][group]) for s in work]
    return [Slice(f, s.weight, s.start, s.end, Way(LOOP, LOOP)) for f, s in zip(views, work, strict=True)]


def planned(case: ModuleType, work: list[Segment]) -> LoopCall:
    loop = load_loop(case.dtype)
    assert loop is not None
    return plan_loops(loop, [GroupTables(GROUP)], {0: slices(case, work)})[0]


def make_case(kit: ModuleType, dtype: torch.dtype = torch.float32) -> ModuleType:
    case = kit.Case((GROUP, GROUP), dtype, device="cpu")
    for slot in range(8):
        case.add(slot, {0: (16, 8, 5), 1: (16, 8, 5)} if slot == 0 else {0: (16, 8, 5)})
    return case


def test_tiles_are_cut_where_segments_change_and_where_they_are_full(kit: ModuleType) -> None:
    case = make_case(kit)
    tiles = make_tiles(slices(case, [Segment(0, 0.5, 2, 9), Segment(1, 2.0, 6, 7), Segment(2, 1.0, 12, 13)]), 3)
    rows = [(2, 3), (5, 1), (6, 1), (7, 2), (12, 1)]
    assert tiles.tiles[:, :2].tolist() == [[*each] for each in rows]
    assert tiles.tiles[:, 2:].tolist() == [[0, 1], [1, 2], [2, 4], [4, 5], [5, 6]]
    assert tiles.entries[:, 0].tolist() == [0, 0, 0, 1, 0, 2]
    assert tiles.entries[:, 1].copy().view("float32").tolist() == [0.5, 0.5, 0.5, 2.0, 0.5, 1.0]
    assert tiles.end == 13


def test_groups_with_the_same_rows_share_their_tiles(kit: ModuleType) -> None:
    case, loop = make_case(kit), load_loop(torch.float32)
    assert loop is not None
    work = {0: slices(case, WORK[:1]), 1: slices(case, WORK[:1], 1), 2: slices(case, WORK[:2])}
    plans = plan_loops(loop, [GroupTables(GROUP)] * 3, work)
    assert plans[0].tiles is plans[1].tiles
    assert plans[0].tiles is not plans[2].tiles
    x, y = case.input(1, 3), [case.output(1, position, 3) for position in range(3)]
    got = [each.clone() for each in y]
    plans[1].add_(x, got)
    for position in range(3):
        want = case.reference(WORK[:1], 1, position, x, y[position])
        kit.assert_close(f"site {position}", want, got[position], 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_number_of_threads_changes_no_bit(kit: ModuleType, dtype: torch.dtype) -> None:
    """Enough work for several threads, with shares that cut adapters and outputs in two."""
    case, before = make_case(kit, dtype), torch.get_num_threads()
    plan = planned(case, WORK)
    x, ys = case.input(0, 24), [case.output(0, position, 24) for position in range(3)]
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            got = [y.clone() for y in ys]
            plan.add_(x, got)
            found.append(torch.cat(got, 1))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_inputs_may_have_rows_apart_or_columns_apart(kit: ModuleType) -> None:
    case = make_case(kit)
    plan, x, y = planned(case, WORK), case.input(0, 24), case.output(0, 0, 24)
    wide = torch.zeros(24, 600)
    wide[:, 7:583] = x
    found = []
    for form in (x, wide[:, 7:583], x.t().contiguous().t()):
        got = y.clone()
        plan.add_(form, [got, None, None])
        found.append(got)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_fewer_rows_than_the_segments_have_are_an_error(kit: ModuleType) -> None:
    plan = planned(make_case(kit), WORK)
    with pytest.raises(AssertionError):
        plan.add_(torch.zeros(23, 576), [None] * 3)
