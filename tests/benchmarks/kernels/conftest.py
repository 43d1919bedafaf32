"""Steps of a tiny model, and contenders of every character."""

import sys
from types import ModuleType

import pytest
import torch

from benchmarks.kernels.contender import Run
from benchmarks.kernels.loop import Loop
from benchmarks.kernels.problem import BypassProblem, Scenario, Shape, make_problem
from peftserve.kernels.bypass.layout import Group

SHAPE = Shape(3, (Group(32, (48, 16)), Group(48, (32,))))


def make(tokens: int = 5, ranks: tuple[int, ...] = (4, 8), *, join: bool = False) -> BypassProblem:
    return make_problem(
        Scenario("decode", tokens, ranks), SHAPE, layers=2, dtype=torch.float32, device="cpu", join=join
    )


class Named(Loop):
    def __init__(self, name: str) -> None:
        self.name = name


class Forgetful(Named):
    """Leaves out the last adapter."""

    def prepare(self, problem: BypassProblem) -> Run:
        whole = super().prepare(problem)

        def run() -> None:
            before = [y[-1].clone() for sites in problem.y for y in sites]
            whole()
            for y, row in zip((y for sites in problem.y for y in sites), before, strict=True):
                y[-1] = row

        return run


class Refusing(Named):
    def prepare(self, problem: BypassProblem) -> Run | None:
        return None


class Failing(Named):
    def prepare(self, problem: BypassProblem) -> Run:
        raise RuntimeError("no such device")


@pytest.fixture(scope="session")
def kit() -> ModuleType:
    """This module, for tests: nothing here is on sys.path."""
    return sys.modules[__name__]
