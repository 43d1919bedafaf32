import pytest
import torch

from peftserve.kernels.bypass.layout import Capacity, Group, GroupLayout, RowSet, Segment, StepKind, kinds_for
from peftserve.kernels.bypass.triton.plan import MOST_PROGRAMS, BypassPlan, Segments
from peftserve.kernels.bypass.triton.slots import SlotTable
from tests.kernels.bypass.triton.by_rows import ByRows

LAYER = (Group(4096, (4096, 1024, 1024)), Group(4096, (4096,)), Group(4096, (14336, 14336)), Group(14336, (4096,)))
GROUPS = LAYER * 3
EACH, TILES, FEW = StepKind


def make(h_elements: int = 1 << 22, rank: int = 16) -> BypassPlan:
    slots = SlotTable(torch.device("cpu"), GROUPS, 64)
    for slot in range(64):
        layout = {}
        for index, group in enumerate(GROUPS):
            sites = len(group.out_features)
            layout[index] = GroupLayout(0, (rank,) * sites, (0,) * sites)
        slots.attach(slot, slots.prepare(0, layout))
    return BypassPlan(GROUPS, slots, ByRows(), h_elements, max_rank=512)


def step(*lengths: int) -> Segments:
    ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
    segments = [Segment(i % 64, 1.0, end - lengths[i], end) for i, end in enumerate(ends)]
    return {RowSet.TOKENS: segments, RowSet.LOGITS: []}


def test_groups_of_one_shape_are_planned_once_and_grids_are_exact() -> None:
    plan = make()
    plan.update(step(*[1] * 64), None)
    assert plan.shape_of == [0, 1, 2, 3] * 3
    assert [(each.parts, each.units, each.tiles) for each in plan.launches] == [
        (16, 192, 64),
        (16, 64, 64),
        (16, 128, 64),
        (56, 64, 64),
    ]
    assert all(each.parts <= each.most_parts < 2 * each.parts for each in plan.launches)
    plan.update(step(40, 4), None)
    assert [(each.design.rows, each.parts, each.units, each.tiles) for each in plan.launches] == [
        (16, 4, 12, 4),
        (16, 4, 4, 4),
        (16, 4, 8, 4),
        (16, 14, 4, 4),
    ]


def test_where_there_is_little_room_there_are_fewer_parts() -> None:
    plan = make(h_elements=8 * 64 * 48)
    plan.update(step(*[1] * 64), None)
    assert [each.parts for each in plan.launches] == [8, 16, 8, 19]
    assert plan.h_size <= 8 * 64 * 48
    assert all(
        (each.parts - 1) * each.part < shape.in_features for each, shape in zip(plan.launches, LAYER, strict=True)
    )


@pytest.mark.parametrize(("rows", "kind"), [(rows, kind) for rows in (1, 4, 24, 64, 512) for kind in kinds_for(rows)])
def test_captured_grids_are_for_their_kind_and_never_for_the_worst_case(rows: int, kind: StepKind) -> None:
    plan = make()
    plan.update({rows: [] for rows in RowSet}, Capacity(rows, kind))
    tiles = {EACH: (rows, rows), TILES: (-(-rows // 4), -(-rows // 2)), FEW: (rows // 16 + 4,) * 2}[kind]
    for shape, each in zip(LAYER, plan.launches, strict=True):
        assert tiles[0] <= each.tiles <= tiles[1]
        usual = tiles[0] * len(shape.out_features)
        assert each.units == usual or usual <= each.units <= MOST_PROGRAMS // each.parts
        assert (each.design.rows == 1) == (kind is EACH)
    before = plan.launches
    plan.update(step(*[1] * rows), Capacity(rows, kind))
    assert plan.launches == before
