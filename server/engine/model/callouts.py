"""What a compiled model leaves to this process: attention, products with their bypasses, experts.

While the model is traced for the compiler, `call_out` leaves a call of one operator in the graph instead of what it
runs; the compiled model then calls it in every step, and it reads whatever the step was given.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

Run = Callable[..., torch.Tensor]


class _Call(NamedTuple):
    """run: what is computed. like: from the same tensors, an empty tensor of the shape and type of the result."""

    run: Run
    like: Run


class Calls:
    """Those of one graph. They are forgotten, and the graph can run no more, when nobody holds this."""

    def __init__(self) -> None:
        self._numbers: list[int] = []

    def add(self, call: _Call) -> int:
        number = max(_calls, default=-1) + 1
        _calls[number] = call
        self._numbers.append(number)
        return number

    def __del__(self) -> None:
        for number in self._numbers:
            _calls.pop(number, None)


_calls: dict[int, _Call] = {}
_traced: list[Calls] = []  # the graph that is being traced, if any

_library = torch.library.Library("peftserve", "FRAGMENT")
_library.define("call_out(Tensor[] tensors, int number) -> Tensor")
_library.impl("call_out", lambda tensors, number: _calls[number].run(*tensors), "CompositeExplicitAutograd")
torch.library.register_fake(
    "peftserve::call_out", lambda tensors, number: _calls[number].like(*tensors), lib=_library, allow_override=True
)


@contextmanager
def leaving_calls() -> Iterator[Calls]:
    """Inside, every `call_out` of this process is left in the graph."""
    calls = Calls()
    _traced.append(calls)
    try:
        yield calls
    finally:
        _traced.pop()


def is_traced() -> bool:
    """Whether `call_out` is left in a graph."""
    return bool(_traced)


def call_out(run: Run, like: Run, *tensors: torch.Tensor) -> torch.Tensor:
    """`run(*tensors)`: a new tensor, that shares no memory with the tensors.

    like: gives an empty tensor of the result's shape and type, from the tensors or from ones that only have shapes.
    """
    if not _traced:
        return run(*tensors)
    number = _traced[-1].add(_Call(run, like))
    result: torch.Tensor = torch.ops.peftserve.call_out(list(tensors), number)
    return result
