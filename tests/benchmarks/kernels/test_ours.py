from types import ModuleType

import pytest

from benchmarks.kernels.check import Reference
from benchmarks.kernels.ours import Ours, layout_of


@pytest.mark.parametrize(("tokens", "ranks"), [(1, (8,)), (5, (4, 8, 16)), (40, (8, 16))])
def test_ours_adds_what_the_formula_says(kit: ModuleType, tokens: int, ranks: tuple[int, ...]) -> None:
    problem = kit.make(tokens, ranks)
    assert Reference(problem).error(Ours().prepare(problem)) < 1e-5


def test_layout_is_where_the_factors_are(kit: ModuleType) -> None:
    problem = kit.make()
    adapter = problem.adapters[1]
    layout = layout_of(adapter)
    assert set(layout) == set(range(len(problem.groups)))
    assert layout[1].ranks == (8,)
    assert problem.arena[layout[1].a] == adapter.a[1][0, 0]
    assert problem.arena[layout[2].b[1]] == adapter.b[2][1][0, 0]
