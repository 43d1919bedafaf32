import torch

from benchmarks.kernels.problem import Scenario, Shape, make_problem
from peftserve.kernels.bypass.layout import Group


def test_factors_lie_in_the_arena_and_share_nothing() -> None:
    shape = Shape(7, (Group(10, (4, 6)), Group(6, (10,))))
    problem = make_problem(Scenario("decode", 3, (2, 5)), shape, layers=2, dtype=torch.float32, device="cpu")
    assert problem.layer_groups == 2
    assert [tuple(x.shape) for x in problem.x] == [(3, 10), (3, 6)]
    assert [[tuple(y.shape) for y in sites] for sites in problem.y] == [[(3, 4), (3, 6)], [(3, 10)]]
    for adapter in problem.adapters:
        assert [tuple(a.shape) for a in adapter.a] == [(2 * adapter.rank, 10), (adapter.rank, 6)] * 2
    problem.arena.fill_(1.0)
    before = problem.arena.sum().item()
    for adapter in problem.adapters:
        for factor in (*adapter.a, *(b for sites in adapter.b for b in sites)):
            assert torch.equal(factor, torch.ones_like(factor))
            factor.zero_()
    assert problem.arena.sum().item() == before - sum(
        factor.numel() for adapter in problem.adapters for factor in (*adapter.a, *(b for s in adapter.b for b in s))
    )
