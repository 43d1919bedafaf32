from types import ModuleType

from peftserve.kernels.bypass.layout import Group, Segment
from peftserve.kernels.bypass.torch.bag_plan import plan_bags
from peftserve.kernels.bypass.torch.factors import view_factors
from peftserve.kernels.bypass.torch.products import PLAIN
from peftserve.kernels.bypass.torch.slices import DOTS, SUMS, Slice, Way


def test_dots_and_products_of_one_group_are_summed_in_one_call(kit: ModuleType) -> None:
    """One site with rows that do not follow each other, one that a segment leaves alone, and a row of two segments."""
    group = Group(64, (96, 32))
    case = kit.Case((group,), device="cpu")
    work = [Segment(0, 0.5, 0, 3), Segment(1, 0.5, 2, 9), Segment(2, 2.0, 12, 14), Segment(3, -1.0, 5, 40)]
    slices = []
    for (slot, weight, start, end), ranks in zip(work, [(4, 4), (100, 90), (3, 0), (12, 300)], strict=True):
        case.add(slot, {0: ranks})
        base, layout = case.slots[slot]
        way = Way(PLAIN if slot % 2 else DOTS, SUMS)
        slices.append(Slice(view_factors(case.arena, base, group, layout[0]), weight, start, end, way))
    bags = plan_bags(case.arena, [group], {0: slices})[0]
    assert bags.dots is not None
    assert [s.start for s in bags.products] == [2, 5]
    x, ys = case.input(0, 41), [case.output(0, position, 41) for position in range(2)]
    got = [y.clone() for y in ys]
    bags.add_(x, got)
    for position, y in enumerate(ys):
        kit.assert_close(f"site {position}", case.reference(work, 0, position, x, y), got[position], 1e-6)
