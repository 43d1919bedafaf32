import torch

from peftserve.kernels.bypass.layout import Group, GroupLayout
from peftserve.kernels.bypass.torch.costs import SHARES, Costs, ProductCost
from peftserve.kernels.bypass.torch.factors import Factors, view_factors
from peftserve.kernels.bypass.torch.products import PLAIN, WIDE
from peftserve.kernels.bypass.torch.slices import LOOP, SHORT, Way


def factors(rank: int, *, sites: int = 1) -> Factors:
    group, b = Group(64, (32,) * sites), rank * sites * 64
    layout = GroupLayout(0, (rank,) * sites, tuple(b + rank * 32 * site for site in range(sites)))
    return view_factors(torch.zeros(1 << 17), 0, group, layout)


def test_a_cost_is_linear_in_rows_and_in_elements() -> None:
    assert ProductCost(1.0, 2.0, 3.0, 5.0).of(7, 11) == 1 + 7 * 2 + 11 * (3 + 7 * 5)


def test_the_cheapest_way_depends_on_the_rows() -> None:
    costs = Costs(
        {PLAIN: ProductCost(1.0, row=1.0), WIDE: ProductCost(10.0)},
        {PLAIN: ProductCost(1.0, row=1.0), WIDE: ProductCost(10.0)},
    )
    assert costs.best(factors(8), 2) == Way(PLAIN, PLAIN)
    assert costs.best(factors(8), 20) == Way(WIDE, WIDE)


def test_short_segments_share_the_call_and_the_threads_of_the_loop() -> None:
    assert ProductCost(8.0, 2.0, 3.0, 5.0).shared(7, 11, 2) == 8 / SHARES + (7 * 2 + 11 * (3 + 7 * 5)) / 2
    products = {PLAIN: ProductCost(1.0, term=1.0)}
    costs = Costs(products, products, loop=ProductCost(2.0 * SHARES, term=1.5))
    assert costs.best(factors(8), SHORT) == Way(PLAIN, PLAIN)
    assert costs._replace(threads=2).best(factors(8), SHORT) == Way(LOOP, LOOP)
    assert costs._replace(threads=2).best(factors(8), SHORT + 1) == Way(PLAIN, PLAIN)


def test_the_loop_takes_one_call_for_all_sites() -> None:
    products = {PLAIN: ProductCost(1.0)}
    costs = Costs(products, products, loop=ProductCost(3.0))
    assert costs.best(factors(8), SHORT + 1) == Way(PLAIN, PLAIN)
    assert costs.best(factors(8, sites=3), SHORT + 1) == Way(LOOP, LOOP)
