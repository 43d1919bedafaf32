from types import ModuleType

import pytest

from benchmarks.kernels.check import Reference
from benchmarks.kernels.ours import Ours, layout_of


@pytest.mark.parametrize(("tokens", "ranks"), [(1, (8,)), (5, (4, 8, 16)), (40, (8, 16))])
def test_ours_adds_what_the_formula_says(kit: ModuleType, tokens: int, ranks: tuple[int, ...]) -> None:
    step = kit.make(tokens, ranks)
    assert Reference(step).error(Ours().prepare(step)) < 1e-5


def test_layout_is_where_the_factors_are(kit: ModuleType) -> None:
    step = kit.make()
    adapter = step.adapters[1]
    layout = layout_of(adapter)
    assert set(layout) == set(range(len(step.groups)))
    assert layout[1].ranks == (8,)
    assert step.arena[layout[1].a] == adapter.a[1][0, 0]
    assert step.arena[layout[2].b[1]] == adapter.b[2][1][0, 0]
