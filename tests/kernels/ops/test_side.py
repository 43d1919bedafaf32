"""Primitives of several adapters in one step: each row gets its own, gathered or one by one, mixtures their sums."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.bypass.layout import RowSet, Segment
from peftserve.kernels.ops.formulas import Op
from peftserve.kernels.ops.planner import CallPlanner
from peftserve.kernels.ops.side import SideOps

WIDTH = 6


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ops_of(slot: int) -> list[Op]:
    """Return a different mix of primitives for each slot; `expected` knows their matrices."""
    every = [
        Op("output_scale", {"d": draw(slot, WIDTH)}),
        Op("bias", {"d": draw(slot + 50, WIDTH)}),
        Op("input_scale", {"d": draw(slot + 100, WIDTH)}),
        Op("dense", {"w": draw(slot + 150, WIDTH, WIDTH)}),
        Op("input_rotation", {"blocks": draw(slot + 200, 2, 3, 3)}),
    ]
    return [op for i, op in enumerate(every) if slot >> i & 1]


def expected(segments: list[Segment], x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Return the base and the weighted sum of each adapter's own effect, one row at a time."""
    out = []
    for row in range(len(x)):
        one = x[row : row + 1]
        plain = one @ base.T
        mine = [(s.weight, alone(ops_of(s.slot), one, base)) for s in segments if s.start <= row < s.end]
        out.append(plain + sum(weight * (adapted - plain) for weight, adapted in mine))
    return torch.cat(out)


def alone(ops: list[Op], x: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """base(x + Σ in(x)) + Σ out(that) + Σ add(x)"""
    y = (x + sum(op(x, None) for op in ops if op.kind.startswith("input"))) @ base.T
    return y + sum(op(x, y) for op in ops if not op.kind.startswith("input"))


SEGMENTS = st.lists(
    st.tuples(st.integers(0, 31), st.sampled_from([1.0, 0.5, -2.0]), st.integers(0, 9), st.integers(0, 4)), max_size=6
)


@given(SEGMENTS, st.sampled_from([0, 4, 256]))
@settings(max_examples=150, deadline=None)
def test_each_row_gets_what_its_segments_say(drawn: list[tuple[int, float, int, int]], stacked: int) -> None:
    segments = [Segment(slot, weight, start, start + length) for slot, weight, start, length in drawn]
    side = SideOps({"site": RowSet.TOKENS}, CallPlanner(stacked))
    for slot in {segment.slot for segment in segments}:
        ops = ops_of(slot)
        side.attach(slot, {"site": ops} if ops else {})
    x, base = draw(7, 13, WIDTH), draw(8, WIDTH, WIDTH)
    untouched = x.clone()
    side.begin(segments, [])
    plan = side.plans.get("site")
    y = (x if plan is None else plan.before(x)) @ base.T
    if plan is not None:
        y = plan.after(x, y, lambda rows: rows @ base.T)
    torch.testing.assert_close(y, expected(segments, x, base))
    assert torch.equal(x, untouched)


def test_a_step_without_such_adapters_has_no_plan() -> None:
    side = SideOps({"site": RowSet.TOKENS})
    side.attach(1, {})
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert not side.plans
    side.attach(2, {"site": [Op("bias", {"d": torch.ones(WIDTH)})]})
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert not side.plans


def test_the_same_step_again_is_not_planned_again_until_one_of_its_slots_changes() -> None:
    side = SideOps({"site": RowSet.TOKENS})
    side.attach(1, {"site": [Op("bias", {"d": torch.ones(WIDTH)})]})
    side.begin([Segment(1, 1.0, 0, 3)], [])
    plans = side.plans
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert side.plans is plans
    side.attach(2, {"site": [Op("bias", {"d": torch.zeros(WIDTH)})]})  # which is not in the step
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert side.plans is plans
    side.detach(2)
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert side.plans is plans
    side.detach(1)
    side.begin([Segment(1, 1.0, 0, 3)], [])
    assert not side.plans


def test_what_reads_another_module_s_input_reads_its_own_rows_of_it() -> None:
    width, out = WIDTH + 3, WIDTH
    weights = {"down": draw(20, 2, width), "down_bias": draw(21, 2), "up": draw(22, out, 2), "up_bias": draw(23, out)}
    beside = Op("parallel_bottleneck", {**weights, "activation": "tanh", "source": "norm"})
    side = SideOps({"site": RowSet.TOKENS})
    side.attach(1, {"site": [beside]})
    side.attach(2, {"site": [Op("bias", {"d": draw(24, out)})]})
    side.begin([Segment(2, 1.0, 0, 2), Segment(1, 0.5, 2, 5)], [])
    plan = side.plans["site"]
    assert plan.sources == {"norm"}
    x, r, y = draw(25, 5, WIDTH), draw(26, 5, width), draw(27, 5, out)
    wanted = torch.cat([y[:2] + draw(24, out), y[2:] + 0.5 * beside(r[2:], y[2:])])
    torch.testing.assert_close(plan.after(x, y, torch.zeros_like, {"norm": r}), wanted)


def test_a_larger_vocabulary_widens_the_output_for_all() -> None:
    head = torch.nn.Linear(WIDTH, 9, bias=False).double()
    side = SideOps({"head": RowSet.LOGITS})
    side.attach(1, {"head": [Op("replacement", {"module": head, "width": 9})]})
    side.begin([Segment(1, 1.0, 0, 4)], [Segment(1, 1.0, 1, 2)])
    x, y = draw(1, 3, WIDTH), draw(2, 3, 7)
    plan = side.plans["head"]
    wide = plan.after(x, y, torch.zeros_like)
    torch.testing.assert_close(wide[1], head(x[1]))
    torch.testing.assert_close(wide[[0, 2], :7], y[[0, 2]])
