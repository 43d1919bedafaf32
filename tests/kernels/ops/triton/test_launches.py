"""The kernels, in one launch each, against the formulas in float64: odd shapes, any number of adapters on a row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from peftserve.kernels.bypass.layout import RowSet, Segment
from peftserve.kernels.ops.formulas import FORMULAS, Op, Stage
from peftserve.kernels.ops.planner import CallPlanner
from peftserve.kernels.ops.side import SideOps
from peftserve.kernels.ops.site_plan import OpSegment, SitePlan, Stacked
from peftserve.kernels.ops.triton import kernels as triton_kernels
from peftserve.kernels.ops.triton.launches import KERNELS, Launch

from ..makers import drawn

Draw = Callable[..., torch.Tensor]


def entries(draw: Draw, count: int, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Draw rows with no entry, with some, and one with half of them."""
    numbers = torch.Generator().manual_seed(count)
    rows = torch.randint(1, shape[0] - 1, (count,), generator=numbers)
    rows[: count // 2] = 7
    starts = torch.searchsorted(rows.sort().values, torch.arange(shape[0] + 1), out_int32=True)
    columns = torch.randint(shape[1], (count,), generator=numbers, dtype=torch.int32)
    return {"starts": starts, "columns": columns, "values": draw(count)}


# By kind and case: in, out, and what makes the fields.
CASES: Mapping[str, tuple[str, int, int, Callable[[Draw], Mapping[str, Any]]]] = {
    "rotation": ("input_rotation", 150, 70, lambda draw: {"blocks": draw(3, 50, 50)}),
    "small blocks": ("input_rotation", 132, 70, lambda draw: {"blocks": draw(44, 3, 3)}),
    "one block": ("input_rotation", 148, 70, lambda draw: {"blocks": draw(1, 4, 4)}),
    "pairs": ("pair_rotation", 20, 1300, lambda draw: {"d": draw(1300), "c": draw(1300), "group": 20}),
    "all in one group": ("pair_rotation", 20, 1100, lambda draw: {"d": draw(1100), "c": draw(1100), "group": 1100}),
    "sparse": ("sparse", 41, 71, lambda draw: entries(draw, 201, (71, 41))),
    "nearly empty": ("sparse", 41, 71, lambda draw: entries(draw, 2, (71, 41))),
    "kronecker": ("kronecker", 195, 1190, lambda draw: {"w1": draw(70, 3), "w2": draw(17, 65)}),
    "wide kronecker": ("kronecker", 70, 45, lambda draw: {"w1": draw(5, 70), "w2": draw(9, 1)}),
}
SEGMENTS = {
    "pairs of rows": [Segment(slot, 1.0, 2 * slot + 1, 2 * slot + 3) for slot in range(4)],
    "uneven": [Segment(s, w, a, b) for s, w, a, b in [(3, 1.0, 0, 1), (1, 0.5, 1, 4), (0, 1.0, 6, 11)]],
    "mixtures": [
        Segment(s, w, a, b) for s, w, a, b in [(0, 0.75, 0, 3), (1, 0.25, 1, 3), (2, -2.0, 1, 2), (1, 1.0, 5, 6)]
    ],
}


class Arena:
    """NaN wherever no parameter lies."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._memory = torch.full((1 << 17,), torch.nan, dtype=dtype, device=device)
        self._used = 32

    def put(self, op: Op) -> Op:
        return Op(op.kind, {n: self._place(v) if isinstance(v, torch.Tensor) else v for n, v in op.fields.items()})

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        dtype = self._memory.dtype if tensor.is_floating_point() else torch.int32
        size = -(-tensor.numel() * dtype.itemsize // self._memory.element_size())
        place = self._memory[self._used : self._used + size]
        self._used += -(-size // 32) * 32
        view = place.view(dtype)[: tensor.numel()].view(tensor.shape)
        return view.copy_(tensor)


def planned(ops: Mapping[int, Op], segments: Sequence[Segment], planner: CallPlanner) -> SitePlan:
    side = SideOps({"site": RowSet.TOKENS}, planner)
    for slot, op in ops.items():
        side.attach(slot, {"site": [op]})
    side.begin(segments, [])
    return side.plans["site"]


def run(plan: SitePlan, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the kernel's rotated inputs or outputs."""
    return plan.before(x) if Stage.INPUT in plan.stages else plan.after(x, y.clone(), torch.zeros_like)


# 16 bits of one list of segments: the type changes how numbers are read and written, wherever they are.
STEPS = [*((name, torch.float32) for name in SEGMENTS), ("mixtures", torch.float16)]


@pytest.mark.slow
@pytest.mark.parametrize(("segments", "dtype"), STEPS, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_one_launch_is_what_the_formula_says(case: str, segments: str, dtype: torch.dtype, device: str) -> None:
    kind, width, out, make = CASES[case]
    arena = Arena(dtype, device)
    ops = {slot: arena.put(Op(kind, make(drawn(slot)))) for slot in range(4)}
    exact = {slot: Op(kind, {n: _double(v) for n, v in op.fields.items()}) for slot, op in ops.items()}
    # Columns of wider tensors, as those of modules whose outputs lie side by side.
    x, y = (drawn(n)(12, wide + 5).to(device, dtype)[:, :wide] for n, wide in ((1, width), (2, out)))
    plan = planned(ops, SEGMENTS[segments], CallPlanner(kernels=True))
    got = run(plan, x, y)
    (terms,) = plan.stages.values()
    assert [type(call) for call in terms.calls] == [Launch]
    wanted = run(planned(exact, SEGMENTS[segments], CallPlanner(0)), x.double(), y.double())
    tolerance = 1e-5 if dtype is torch.float32 else 4e-3
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    assert torch.equal(run(plan, x, y), got)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def test_sites_of_a_plan_share_one_list_and_shapes_have_launches_of_their_own(device: str) -> None:
    arena, out = Arena(torch.float32, device), 24
    side = SideOps({"one": RowSet.TOKENS, "two": RowSet.TOKENS}, CallPlanner(kernels=True))
    for slot in range(3):
        group = 4 if slot < 2 else 6
        draw = drawn(slot)
        pairs = {name: arena.put(_pairs(draw, out, group)) for name in ("one", "two")}
        scale = arena.put(Op("output_scale", {"d": draw(out)}))
        side.attach(slot, {"one": [pairs["one"], scale], "two": [pairs["two"]]})
    side.begin([Segment(slot, 1.0, slot, slot + 1) for slot in range(3)], [])
    calls = {name: plan.stages[Stage.OUTPUT].calls for name, plan in side.plans.items()}
    assert sorted(type(call).__name__ for call in calls["one"]) == ["Launch", "Launch", "Stacked"]
    assert [type(call) for call in calls["two"]] == [Launch, Launch]
    lists = {id(call.lists) for found in calls.values() for call in found if isinstance(call, Launch)}
    assert len(lists) == 1
    assert any(isinstance(call, Stacked) for call in calls["one"])


def _pairs(draw: Draw, out: int, group: int) -> Op:
    return Op("pair_rotation", {"d": draw(out), "c": draw(out), "group": group})


def test_a_long_part_runs_by_itself(device: str) -> None:
    arena = Arena(torch.float32, device)
    ops = {slot: arena.put(_pairs(drawn(slot), 24, 4)) for slot in range(3)}
    segments = [Segment(0, 1.0, 0, 40), Segment(1, 1.0, 40, 41), Segment(2, 1.0, 41, 42)]
    (terms,) = planned(ops, segments, CallPlanner(kernels=True)).stages.values()
    assert [type(call) for call in terms.calls] == [OpSegment, Launch]


def test_every_kernel_is_tested() -> None:
    assert KERNELS.keys() == {kind for kind, *_ in CASES.values()} <= FORMULAS.keys()
    assert len(KERNELS) == sum(name.endswith("_kernel") for name in vars(triton_kernels))
