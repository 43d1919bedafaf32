"""Steps find what earlier ones made, and nothing is held for longer than it is read."""

import weakref
from typing import Any

import torch
from torch import fx

from peftserve.server.engine.model.program import Program


def nodes(*names: str) -> list[fx.Node]:
    graph = fx.Graph()
    return [graph.placeholder(name) for name in names]


def add(values: list[Any]) -> tuple[torch.Tensor]:
    return (values[0] + values[1],)


def halves(values: list[Any]) -> tuple[torch.Tensor, ...]:
    return values[0].chunk(2)


def test_values_go_from_step_to_step_and_constants_stay() -> None:
    x, weight, shifted, left, right, out = nodes("x", "weight", "shifted", "left", "right", "out")
    program = Program([x], {weight: torch.ones(4)}, out)
    program.add(add, [x, weight], [shifted])
    program.add(halves, [shifted], [left, right])
    program.add(add, [left, right], [out])
    program.finish()
    assert len(program) == 3
    for _ in range(2):
        assert program(torch.arange(4.0)).tolist() == [4.0, 6.0]


def test_a_value_goes_with_its_last_reader() -> None:
    x, early, late, between, out = nodes("x", "early", "late", "between", "out")
    held: list[Any] = []

    def make(values: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        made = (values[0] + 1, values[0] + 2)
        held.extend(map(weakref.ref, made))
        return made

    def take_early(values: list[Any]) -> tuple[torch.Tensor]:
        result = values[0] * 1
        values.clear()
        assert [ref() is None for ref in held] == [True, False], "who empties the list lets it go"
        return (result,)

    def take_late(values: list[Any]) -> tuple[torch.Tensor]:
        result = values[0] + values[1]
        del values[:]
        assert held[1]() is None
        return (result,)

    program = Program([x], {}, out)
    program.add(make, [x], [early, late])
    program.add(take_early, [early], [between])
    program.add(take_late, [between, late], [out])
    program.finish()
    assert program(torch.ones(1)).tolist() == [2.0 + 3.0]
