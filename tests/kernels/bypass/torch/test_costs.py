import torch

from peftserve.kernels.bypass.layout import Group, GroupLayout
from peftserve.kernels.bypass.torch.costs import SHARES, Cost, Costs
from peftserve.kernels.bypass.torch.factors import Factors, view_factors
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE
from peftserve.kernels.bypass.torch.slices import DOTS, ROWWISE, SHORT, SUMS, Way


def factors(rank: int, *, sites: int = 1, gather: bool = False, base: int = 0) -> Factors:
    group, b = Group(64, (32,) * sites, gather=gather), rank * sites * 64
    layout = GroupLayout(0, (rank,) * sites, tuple(b + rank * 32 * site for site in range(sites)))
    return view_factors(torch.zeros(1 << 17), base, group, layout)


def test_a_cost_is_linear_in_rows_and_in_elements() -> None:
    assert Cost(1.0, 2.0, 3.0, 5.0).of(7, 11) == 1 + 7 * 2 + 11 * (3 + 7 * 5)


def test_the_cheapest_way_depends_on_the_rows() -> None:
    costs = Costs({PLAIN: Cost(1.0, row=1.0), WIDE: Cost(10.0)}, {PLAIN: Cost(1.0, row=1.0), WIDE: Cost(10.0)})
    assert costs.best(factors(8), 2) == Way(PLAIN, PLAIN)
    assert costs.best(factors(8), 20) == Way(WIDE, WIDE)


def test_rows_have_products_of_their_own_in_short_segments_only() -> None:
    costs = Costs({PLAIN: Cost(1.0), WIDE: Cost(0.5)}, {PLAIN: Cost(5.0), ROWWISE: Cost(1.0)})
    assert costs.best(factors(8), SHORT) == Way(PLAIN, ROWWISE)
    assert costs.best(factors(8), SHORT + 1) == Way(WIDE, PLAIN)
    assert costs.best(factors(8, gather=True), 1) == Way(WIDE, PLAIN)


def test_bags_share_calls_and_the_work_of_short_segments_among_threads() -> None:
    assert Cost(8.0, 2.0, 3.0, 5.0).in_bags(7, 11, 2) == 8 / SHARES + (7 * 2 + 11 * (3 + 7 * 5)) / 2
    products, bags = Cost(1.0, term=1.0), Cost(2.0 * SHARES, term=1.5)
    costs = Costs({DOTS: bags, PLAIN: products}, {SUMS: bags, PLAIN: products})
    assert costs.best(factors(8), SHORT) == Way(PLAIN, PLAIN)
    assert costs._replace(threads=2).best(factors(8), SHORT) == Way(DOTS, SUMS)
    assert costs._replace(threads=2).best(factors(8), SHORT + 1) == Way(PLAIN, PLAIN)


def test_bags_take_one_call_for_all_sites() -> None:
    one = Cost(1.0 * SHARES)
    costs = Costs({DOTS: one, PLAIN: Cost(0.5)}, {SUMS: one, PLAIN: Cost(0.5)})
    assert costs.best(factors(8, sites=1), 1).expand == PLAIN
    assert costs.best(factors(8, sites=3), 1).expand == SUMS


def test_what_bags_cannot_read_well_never_is_in_them() -> None:
    costs = Costs({DOTS: Cost(0.0), PLAIN: Cost(1.0)}, {SUMS: Cost(0.0), PLAIN: Cost(1.0)})
    assert costs.best(factors(8), 1) == Way(DOTS, SUMS)
    assert costs.best(factors(8, gather=True), 1) == Way(PLAIN, PLAIN)
    assert costs.best(factors(8, base=8), 1) == Way(PLAIN, PLAIN)
