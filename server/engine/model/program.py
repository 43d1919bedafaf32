"""A model that was cut into pieces, as a list of instructions over registers: none of the model's own Python runs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

Run = Callable[[list[Any]], Sequence[Any]]
"""Takes its inputs in a list that it may empty, and returns its outputs."""


class Instruction(NamedTuple):
    """One piece or call. inputs, outputs: registers. dead: inputs that no later instruction reads."""

    run: Run
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dead: tuple[int, ...]


class Program:
    """A model as a list of instructions: add them in their order, call `finish`, then call the program."""

    def __init__(self, inputs: Sequence[fx.Node], tensors: dict[fx.Node, torch.Tensor], output: fx.Node) -> None:
        """Begin an empty program.

        inputs: nodes whose values a call of the program is given. tensors: those that stay from call to call.
        output: the node whose value is returned.
        """
        self._places: dict[fx.Node, int] = {}
        self._inputs = [self._place(node) for node in inputs]
        self._first = [None] * len(self._inputs) + list(tensors.values())
        self._kept = {*map(self._place, tensors)}
        self._output_node = output
        self._instructions: list[Instruction] = []

    def add(self, run: Run, inputs: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> None:
        places = (tuple(map(self._place, inputs)), tuple(map(self._place, outputs)))
        self._instructions.append(Instruction(run, *places, ()))

    def finish(self) -> None:
        """Free each register with the last instruction that reads it: activations would add up over the layers."""
        needed = {self._place(self._output_node), *self._kept}
        for index, instruction in reversed([*enumerate(self._instructions)]):
            dead = {*instruction.inputs} - needed
            needed |= dead
            self._instructions[index] = instruction._replace(dead=tuple(dead))

    def __len__(self) -> int:
        return len(self._instructions)

    def __call__(self, *inputs: Any) -> torch.Tensor:
        registers: list[Any] = [*inputs, *self._first[len(inputs) :], *[None] * (len(self._places) - len(self._first))]
        for run, reads, writes, dead in self._instructions:
            given = [registers[place] for place in reads]
            for place in dead:
                registers[place] = None
            values: Any = run(given)
            for place, value in zip(writes, values, strict=True):
                registers[place] = value
            values = value = None  # or it would live as long as the next instruction
        result: torch.Tensor = registers[self._places[self._output_node]]
        return result

    def _place(self, node: fx.Node) -> int:
        return self._places.setdefault(node, len(self._places))
