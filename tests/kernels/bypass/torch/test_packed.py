from types import ModuleType

import torch

from peftserve.kernels.bypass.layout import Group, Segment
from peftserve.kernels.bypass.torch.factors import Factors, view_factors
from peftserve.kernels.bypass.torch.packed import plan_packed
from peftserve.kernels.bypass.torch.products import PLAIN
from peftserve.kernels.bypass.torch.slices import ROWWISE, Slice, Way

GROUP = Group(64, (96, 32))


def factors(case: ModuleType, slot: int, group: int = 0) -> Factors:
    base, layout = case.slots[slot]
    return view_factors(case.arena, base, GROUP, layout[group])


def test_rows_of_several_segments_and_rows_of_none(kit: ModuleType) -> None:
    case = kit.Case((GROUP,), device="cpu")
    work = [Segment(0, 0.5, 1, 3), Segment(1, -1.0, 2, 5), Segment(0, 2.0, 7, 8)]
    for slot, ranks in enumerate([(4, 4), (3, 0)]):
        case.add(slot, {0: ranks})
    ways = (Way(PLAIN, PLAIN), Way(PLAIN, ROWWISE), Way(PLAIN, PLAIN))
    slices = [Slice(factors(case, s.slot), s.weight, s.start, s.end, way) for s, way in zip(work, ways, strict=True)]
    packed = plan_packed([GROUP], {0: slices})[0]
    x, ys = case.input(0, 9), [case.output(0, position, 9) for position in range(2)]
    got = [y.clone() for y in ys]
    packed.add_(x, got)
    for position, y in enumerate(ys):
        kit.assert_close(f"site {position}", case.reference(work, 0, position, x, y), got[position], 1e-6)


def test_layers_of_one_shape_share_their_buffers(kit: ModuleType) -> None:
    groups = (GROUP,) * 3
    case = kit.Case(groups, device="cpu")
    case.add(0, {0: (4, 4), 1: (4, 4), 2: (4, 5)})
    work = {index: [Slice(factors(case, 0, index), 1.0, 0, 2, Way(PLAIN, PLAIN))] for index in range(3)}
    plans = plan_packed(groups, work)
    assert plans[0].buffers is plans[1].buffers
    assert plans[0].buffers is not plans[2].buffers
    x = torch.ones(2, 64)
    for index in (0, 1, 2):
        got = [torch.zeros(2, width) for width in GROUP.out_features]
        plans[index].add_(x, got)
        want = case.reference([Segment(0, 1.0, 0, 2)], index, 1, x, torch.zeros(2, 32))
        kit.assert_close(f"layer {index}", want, got[1], 1e-6)
