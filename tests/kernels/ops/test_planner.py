"""Primitives of one kind of many adapters: one call equals one after the other, and what may form a batch."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peftserve.kernels.bypass.layout import RowSet, Segment
from peftserve.kernels.ops.batched import BATCHED
from peftserve.kernels.ops.formulas import Op
from peftserve.kernels.ops.planner import CallPlanner
from peftserve.kernels.ops.side import SideOps
from peftserve.kernels.ops.site_plan import Batch, OpSegment, SitePlan, Stacked
from peftserve.kernels.ops.stacks import Stacks

from .makers import IN, MAKERS, OUT, drawn, make

EVEN = [Segment(slot, 1.0, 2 * slot, 2 * slot + 2) for slot in range(8)]
UNEVEN = [
    Segment(slot, 1.0, start, end) for slot, start, end in [(3, 0, 1), (1, 1, 4), (0, 6, 8), (2, 9, 10), (1, 11, 16)]
]
MIXED = [
    Segment(s, w, a, b)
    for s, w, a, b in [(0, 0.7, 0, 3), (1, 0.3, 0, 3), (2, 1.0, 3, 4), (3, -2.0, 3, 5), (1, 1.0, 4, 6)]
]
LONG = [Segment(0, 1.0, 0, 12), Segment(1, 1.0, 12, 14), Segment(2, 0.5, 14, 15), Segment(3, 1.0, 15, 16)]


def planned(kind: str, segments: Sequence[Segment], planner: CallPlanner, unlike: bool = False) -> SitePlan:
    """Plan one site. unlike: every third adapter has parameters of another shape."""
    side = SideOps({"site": RowSet.TOKENS}, planner)
    for slot in {segment.slot for segment in segments}:
        side.attach(slot, {"site": [make(kind, slot, int(unlike and slot % 3 == 1))]})
    side.begin(segments, [])
    return side.plans["site"]


def run(plan: SitePlan, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Run 16 rows through a base that returns its input, repeated to the width of the output."""
    x, norm, y = (drawn(seed)(16, width).to(dtype) for seed, width in ((1, IN), (2, OUT), (3, OUT)))
    changed = plan.before(x)
    return plan.after(x, y + changed.repeat(1, 2)[:, :OUT], torch.zeros_like, {"norm": norm})


@pytest.mark.parametrize("unlike", [False, True])
@pytest.mark.parametrize("segments", [EVEN, UNEVEN, MIXED, LONG], ids=["even", "uneven", "mixed", "long"])
@pytest.mark.parametrize("kind", BATCHED)
def test_a_batch_is_what_its_segments_are_one_by_one(kind: str, segments: list[Segment], unlike: bool) -> None:
    one_by_one = run(planned(kind, segments, CallPlanner(0), unlike))
    plan = planned(kind, segments, CallPlanner(long=8), unlike)
    got = run(plan)
    tolerance = 1e-5 if kind == "sparse" else 1e-10  # whose sums are in fp32
    torch.testing.assert_close(got, one_by_one, rtol=tolerance, atol=tolerance)
    assert torch.equal(run(plan), got)
    (terms,) = plan.stages.values()
    assert any(isinstance(call, Batch) for call in terms.calls)
    assert sum(isinstance(call, OpSegment) for call in terms.calls) <= (1 if segments is LONG else 0) + 3 * unlike


@pytest.mark.parametrize("kind", BATCHED)
def test_eight_adapters_of_a_kind_are_one_step(kind: str) -> None:
    (terms,) = planned(kind, EVEN, CallPlanner()).stages.values()
    assert [type(call) for call in terms.calls] == [Batch]


def test_kinds_and_scales_side_by_side() -> None:
    side = SideOps({"site": RowSet.TOKENS}, CallPlanner())
    alone = SideOps({"site": RowSet.TOKENS}, CallPlanner(0))
    for slot in range(8):
        ops = [make("pair_rotation", slot, 0)] if slot % 2 else [Op("output_scale", {"d": drawn(slot)(OUT)})]
        for one in (side, alone):
            one.attach(slot, {"site": ops})
            one.begin(EVEN, [])
    (terms,) = side.plans["site"].stages.values()
    assert {type(call) for call in terms.calls} == {Batch, Stacked}
    assert len(terms.calls) == 2
    torch.testing.assert_close(run(side.plans["site"]), run(alone.plans["site"]))


def test_rows_of_a_batch_are_bounded() -> None:
    (terms,) = planned("kronecker", EVEN, CallPlanner(most_rows=4)).stages.values()
    assert [call.rows.segments * call.rows.most for call in terms.calls if isinstance(call, Batch)] == [4] * 4


def test_what_finds_no_room_for_its_stack_runs_one_by_one() -> None:
    size = 8 * (9 * 6 + 4 * 4)
    full = planned("kronecker", EVEN, CallPlanner(stacks=Stacks(8 * size - 1)))
    (terms,) = full.stages.values()
    assert [type(call) for call in terms.calls] == [OpSegment] * 8
    (terms,) = planned("kronecker", EVEN, CallPlanner(stacks=Stacks(8 * size))).stages.values()
    assert [type(call) for call in terms.calls] == [Batch]


def test_what_is_stacked_is_kept_while_the_same_adapters_run_and_goes_with_any_of_them() -> None:
    stacks = Stacks()
    side = SideOps({"site": RowSet.TOKENS}, CallPlanner(stacks=stacks))
    for slot in range(3):
        side.attach(slot, {"site": [make("kronecker", slot, 0)]})

    def stacked(*segments: Segment) -> Batch:
        side.begin(segments, [])
        (call,) = side.plans["site"].stages.popitem()[1].calls  # type: ignore[attr-defined]
        assert isinstance(call, Batch)
        return call

    first = stacked(Segment(0, 1.0, 0, 1), Segment(1, 1.0, 1, 2))
    again = stacked(Segment(0, 1.0, 0, 2), Segment(1, 1.0, 2, 3))
    assert again.fields["w1"] is first.fields["w1"]
    other = stacked(Segment(0, 1.0, 0, 1), Segment(2, 1.0, 1, 2))
    assert other.fields["w1"] is not first.fields["w1"]
    assert stacks.num_bytes == 2 * 8 * (9 * 6 + 4 * 4)
    side.detach(2)
    assert stacks.num_bytes == 0


def test_every_kind_has_a_maker() -> None:
    assert MAKERS.keys() == BATCHED.keys()


class Calls(TorchDispatchMode):
    """Counts operators that compute or copy something: on a GPU about as many launches."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view and "view" not in func.name() and "t.default" not in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "most"), [("pair_rotation", 4), ("shared_low_rank", 5), ("kronecker", 4)])
def test_a_batch_takes_no_more_calls_for_more_adapters(kind: str, most: int) -> None:
    counts = []
    for adapters in (2, 8):
        plan = planned(kind, EVEN[:adapters], CallPlanner())
        run(plan)  # what is made once
        x, y = drawn(1)(16, IN), drawn(3)(16, OUT)
        with Calls() as calls:
            plan.after(x, y, torch.zeros_like)
        counts.append(calls.count)
    assert counts[0] == counts[1] <= most
