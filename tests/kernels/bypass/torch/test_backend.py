from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import Group, RowSet, Segment
from peftserve.kernels.bypass.torch.backend import TorchBypass
from peftserve.kernels.bypass.torch.costs import Costs, ProductCost
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE
from peftserve.kernels.bypass.torch.slices import LOOP

GROUPS = (Group(48, (32, 96)), Group(7, (64,), gather=True), Group(32, (21,), rows=RowSet.LOGITS))
ROWS = 40
ALL = ((PLAIN, PLAIN), (PLAIN, WIDE), (WIDE, PLAIN), (WIDE, WIDE), (LOOP, LOOP))

segments = st.lists(
    st.builds(
        lambda slot, weight, start, length: Segment(slot, weight, start, min(start + length, ROWS)),
        st.integers(0, 3),
        st.sampled_from([1.0, 0.5, -2.0]),
        st.integers(0, ROWS - 1),
        st.sampled_from([0, 1, 2, 7, 14, 40]),
    ),
    max_size=8,
)


def forced(shrink: str, expand: str) -> Costs:
    """Return costs that force one way wherever it is possible, and plain products elsewhere."""
    dear, free = ProductCost(1.0), ProductCost(0.0)
    if shrink == LOOP:
        return Costs({PLAIN: dear}, {PLAIN: dear}, loop=free)
    return Costs({PLAIN: dear, shrink: free}, {PLAIN: dear, expand: free})


@pytest.mark.parametrize("way", [None, *ALL], ids=str)
@given(tokens=segments, logits=segments, ranks=st.lists(st.integers(0, 20), min_size=8, max_size=8))
@settings(max_examples=12, deadline=None)
def test_any_work_list(
    kit: ModuleType, way: tuple[str, str] | None, tokens: list[Segment], logits: list[Segment], ranks: list[int]
) -> None:
    case = kit.Case(GROUPS, device="cpu")
    for slot in range(4):
        chosen = {0: (ranks[slot], ranks[slot + 4]), 1: (ranks[slot],), 2: (ranks[7 - slot],)}
        case.add(slot, {group: r for group, r in chosen.items() if any(r)})
    backend = TorchBypass(case.arena, GROUPS, way and forced(*way))
    case.attach_all(backend)
    kit.check_step(case, backend, tokens, logits, ROWS, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ALL, ids=str)
def test_16_bit(kit: ModuleType, way: tuple[str, str], dtype: torch.dtype) -> None:
    case = kit.Case(GROUPS, dtype, device="cpu")
    case.add(0, {0: (8, 3), 1: (5,)})
    case.add(1, {0: (0, 16), 2: (4,)})
    backend = TorchBypass(case.arena, GROUPS, forced(*way))
    case.attach_all(backend)
    tokens = [Segment(0, 1.0, 0, 3), Segment(1, 0.5, 3, 40), Segment(0, -2.0, 38, 40)]
    kit.check_step(case, backend, tokens, [Segment(1, 1.0, 1, 2)], ROWS, 8e-3)


@pytest.mark.parametrize("way", [None, *ALL], ids=str)
def test_a_row_does_not_depend_on_its_neighbours(kit: ModuleType, way: tuple[str, str] | None) -> None:
    """Odd widths and ranks, so that nothing is aligned by chance."""
    groups = (Group(61, (57, 96)),)
    case = kit.Case(groups, device="cpu")
    for slot, ranks in enumerate([(7, 9), (1, 3), (30, 0)]):
        case.add(slot, {0: ranks})
    backend = TorchBypass(case.arena, groups, way and forced(*way))
    case.attach_all(backend)
    x, ys = case.input(0, ROWS), [case.output(0, position, ROWS) for position in range(2)]
    found = []
    for others in ([], [Segment(1, 1.0, 0, 3), Segment(2, 0.5, 3, 4), Segment(2, 1.0, 6, 40)]):
        got = [y.clone() for y in ys]
        backend.begin(sorted([Segment(0, 1.0, 4, 6), *others], key=lambda s: s.start), [])
        backend.add_(0, x, got)
        found.append(torch.cat([y[4:6] for y in got], 1))
    assert torch.equal(*found)


def test_outputs_that_are_not_there_are_left_out(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    x, y = case.input(0, ROWS), case.output(0, 1, ROWS)
    work = [Segment(0, 1.0, 1, 3)]
    for way in ALL:
        backend, got = TorchBypass(case.arena, GROUPS, forced(*way)), y.clone()
        case.attach_all(backend)
        backend.begin(work, [])
        backend.add_(0, x, [None, got])
        kit.assert_close(str(way), case.reference(work, 0, 1, x, y), got, 1e-6)


def test_outputs_may_be_columns_of_a_wider_one(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    x, y = case.input(0, ROWS), torch.ones(ROWS, 200)
    work = [Segment(0, 1.0, 1, 3), Segment(0, 1.0, 3, ROWS)]
    for way in ALL:
        backend, whole = TorchBypass(case.arena, GROUPS, forced(*way)), y.clone()
        case.attach_all(backend)
        backend.begin(work, [])
        backend.add_(0, x, [whole[:, 5:37], whole[:, 37:133]])
        kit.assert_close(str(way), case.reference(work, 0, 1, x, y[:, 37:133]), whole[:, 37:133], 1e-6)
        assert (whole[:, :5] == 1).all()
        assert (whole[:, 133:] == 1).all()


def test_a_plan_made_in_inference_mode_serves_outside_of_it(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    with torch.inference_mode():
        backend = TorchBypass(case.arena, GROUPS, forced(PLAIN, PLAIN))
        case.attach_all(backend)
        backend.begin([Segment(0, 1.0, 0, 2)], [])
    backend.add_(0, case.input(0, ROWS), [case.output(0, position, ROWS) for position in range(2)])


def test_the_same_work_list_is_planned_once(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    backend = TorchBypass(case.arena, GROUPS)
    case.attach_all(backend)
    plans = []
    for tokens in ([Segment(0, 1.0, 0, 2)], [Segment(0, 1.0, 0, 2)], [Segment(0, 1.0, 0, 3)]):
        backend.begin(tokens, [])
        plans.append(backend._plans)
    assert plans[0] is plans[1]
    assert plans[1] is not plans[2]


def test_who_comes_and_goes_elsewhere_changes_no_plan(kit: ModuleType) -> None:
    case = kit.Case(GROUPS, device="cpu")
    case.add(0, {0: (4, 4)})
    case.add(1, {0: (2, 0)})
    backend = TorchBypass(case.arena, GROUPS)
    case.attach_all(backend)
    running, everyone = [Segment(0, 1.0, 0, 2)], [Segment(0, 1.0, 0, 2), Segment(1, 1.0, 2, 4)]
    backend.begin(running, [])
    plans = backend._plans
    backend.attach(2, backend.prepare(*case.slots[1]))
    backend.detach(1)
    backend.begin(running, [])
    assert backend._plans is plans
    backend.attach(1, backend.prepare(*case.slots[1]))
    kit.check_step(case, backend, everyone, [], ROWS, 1e-6)
    case.add(1, {0: (3, 5)})
    backend.detach(1)
    backend.attach(1, backend.prepare(*case.slots[1]))
    kit.check_step(case, backend, everyone, [], ROWS, 1e-6)  # the same segments, another adapter
