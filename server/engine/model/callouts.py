"""Calls that a compiled model leaves to this process: attention, products with their bypasses, experts.

While the model is traced for the compiler, `call_out` leaves a call of one operator in the graph instead of what it
runs; the compiled model then makes the call in every step, and it reads whatever the step was given.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Call(NamedTuple):
    """One call that is left out of a compiled graph: `run(owner, *tensors)`.

    owner: the module whose work it is, or the name of one. like: takes the same arguments, and returns an empty tensor
    of the shape and type of the result.
    """

    owner: Any
    run: Callable[..., torch.Tensor]
    like: Callable[..., torch.Tensor]


class Calls:
    """The calls of one graph, by the numbers that stand for them in it."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}

    def add(self, call: Call) -> int:
        """Keep a call, and return its number."""
        number = next(_numbers)
        self._calls[number] = call
        return number

    def __getitem__(self, number: int) -> Call:
        return self._calls[number]


_numbers = itertools.count()
_traced: list[Calls] = []  # of the graphs that are being traced, the innermost last

_library = torch.library.Library("peftserve", "FRAGMENT")
_library.define("call_out(Tensor[] tensors, int number) -> Tensor")
_library.impl("call_out", lambda tensors, number: _like(tensors, number), "CompositeExplicitAutograd")
torch.library.register_fake(
    "peftserve::call_out", lambda tensors, number: _like(tensors, number), lib=_library, allow_override=True
)


def _like(tensors: list[torch.Tensor], number: int) -> torch.Tensor:
    """Return an empty tensor like the result. Only for tracing: a compiled model makes its calls itself."""
    call = _traced[-1][number]
    return call.like(call.owner, *tensors)


def is_call(target: Any) -> bool:
    """Return whether a node's target is a call. Its arguments are then a list of tensors and a number."""
    return target is torch.ops.peftserve.call_out.default


@contextmanager
def leaving_calls() -> Iterator[Calls]:
    """Leave every `call_out` of this process in the graph that is traced, for as long as the context lasts."""
    calls = Calls()
    _traced.append(calls)
    try:
        yield calls
    finally:
        _traced.pop()


def is_traced() -> bool:
    """Return whether `call_out` leaves its calls in a graph at present."""
    return bool(_traced)


def call_out(call: Call, *tensors: torch.Tensor) -> torch.Tensor:
    """Run the call, or leave it in the graph if one is traced.

    Returns a new tensor, which shares no memory with `tensors`.
    """
    if not _traced:
        return call.run(call.owner, *tensors)
    result: torch.Tensor = torch.ops.peftserve.call_out(list(tensors), _traced[-1].add(call))
    return result
