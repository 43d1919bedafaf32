from types import ModuleType

import pytest
import torch

from benchmarks.kernels.check import Reference, deltas
from benchmarks.kernels.loop import Loop


def test_the_formula_by_hand(kit: ModuleType) -> None:
    """The second site of the first group: its rows of A, on the second adapter's tokens, of both layers."""
    problem = kit.make()
    start, end = problem.scenario.segments[1][2:]
    x = problem.x[0][start:end].double()
    adapter = problem.adapters[1]
    expected = sum(x @ adapter.a[i][8:].double().t() @ adapter.b[i][1].double() for i in (0, 2))
    assert torch.allclose(deltas(problem)[0][1][start:end], expected)


@pytest.mark.parametrize("join", [False, True])
def test_a_right_one_passes_and_nothing_is_left_behind(kit: ModuleType, join: bool) -> None:
    problem = kit.make(join=join)
    before = [y.clone() for sites in problem.y for y in sites]
    reference = Reference(problem)
    assert reference.error(Loop().prepare(problem)) < 1e-6
    assert all(torch.equal(a, b) for a, b in zip(before, (y for sites in problem.y for y in sites), strict=True))


def test_one_wrong_row_is_found(kit: ModuleType) -> None:
    problem = kit.make(tokens=64)
    assert Reference(problem).error(kit.Forgetful("forgetful").prepare(problem)) > 0.1


def test_what_is_right_only_once_is_found(kit: ModuleType) -> None:
    problem = kit.make()
    calls = []
    run = Loop().prepare(problem)

    def once() -> None:
        if not calls:
            run()
        calls.append(1)

    assert Reference(problem).error(once) > 0.1


def test_nan_is_wrong(kit: ModuleType) -> None:
    problem = kit.make()

    def poison() -> None:
        problem.y[0][0][3, 5] = float("nan")

    assert Reference(problem).error(poison) == float("inf")
