"""Parts of a step meet wherever a call is for all its rows.

A mixer runs once for each part, because sequences of different lengths are no batch to it. The linears inside, with
their bypasses, and attention are told of a step as a whole. So each part runs in a greenlet of its own, and stops at
such a call until all others have come to it: then it is made once, for the rows of all.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from greenlet import greenlet

from .parts import Part

Work = Callable[[], torch.Tensor]
Whole = Callable[..., torch.Tensor]  # takes tensors (1, tokens, ...) of all rows of a step, and returns one


class _Wanted(NamedTuple):
    """A call at which a part waits. tensors: (count, length, ...) of the part."""

    what: Hashable
    call: Whole
    tensors: tuple[torch.Tensor, ...]


class Joint:
    """Runs the parts of one call of a mixer, and makes the calls at which they meet."""

    def __init__(self) -> None:
        self._parts: Sequence[Part] = ()
        self._hub: greenlet | None = None
        self._last: tuple[tuple[torch.Tensor, ...], torch.Tensor] | None = None
        self._own: dict[greenlet, Part] = {}
        self.num_rows = 0

    @property
    def active(self) -> bool:
        """Return whether a part runs that may have to wait for others."""
        return self._hub is not None and greenlet.getcurrent() is not self._hub

    def run(self, parts: Sequence[Part], works: Sequence[Work], num_rows: int) -> list[torch.Tensor]:
        """Run the work of each part. num_rows: of the step. Returns what each returns.

        Between two calls that all make, the parts run in their order.
        """
        self._parts, self._hub, self.num_rows = parts, greenlet.getcurrent(), num_rows
        try:
            return self._run(works)
        finally:
            self._parts, self._hub, self._last = (), None, None
            self._own.clear()

    def run_alone(self, work: Work, num_rows: int) -> torch.Tensor:
        """Run the work of a part that has all rows of a step, in their order: it waits for nobody."""
        self.num_rows = num_rows
        return work()

    def _run(self, works: Sequence[Work]) -> list[torch.Tensor]:
        lets = [greenlet(work) for work in works]
        self._own = dict(zip(lets, self._parts, strict=True))
        said = {place: let.switch() for place, let in enumerate(lets)}
        while waiting := {place: wanted for place, wanted in said.items() if not lets[place].dead}:
            what = next(iter(waiting.values())).what
            there = {place: wanted for place, wanted in waiting.items() if wanted.what == what}
            for place, output in self._make(there).items():
                said[place] = lets[place].switch(output)
        return [said[place] for place in range(len(lets))]

    def call(self, what: Hashable, call: Whole, *tensors: torch.Tensor) -> torch.Tensor:
        """Make a call for all rows, from within a part. what: says which call it is.

        tensors: (count, length, ...) of the part. Returns its part of the result, (count, length, ...).
        """
        assert self._hub is not None
        output: torch.Tensor = self._hub.switch(_Wanted(what, call, tensors))
        return output

    def call_by_rows(self, what: Hashable, call: Whole, *tensors: torch.Tensor) -> torch.Tensor:
        """Make a call for all rows, on tensors of one shape (..., width) whose elements are by tokens, in their order.

        The call takes and returns (1, tokens, rows of a token, width). Returns its part, in the shape of the tensors.
        """
        shape = tensors[0].shape
        if not self.active:
            return call(*(tensor.reshape(1, self.num_rows, -1, shape[-1]) for tensor in tensors)).reshape(shape)
        part = self._own[greenlet.getcurrent()]
        own = (tensor.reshape(part.count, part.length, -1, shape[-1]) for tensor in tensors)
        return self.call(what, call, *own).reshape(shape)

    def _make(self, there: dict[int, _Wanted]) -> dict[int, torch.Tensor]:
        first = next(iter(there.values()))
        inputs = [self._joined(there, i) for i in range(len(first.tensors))]
        output = first.call(*inputs)
        return {place: self._parts[place].take(output) for place in there}

    def _joined(self, there: dict[int, _Wanted], i: int) -> torch.Tensor:
        """Return the tensors of the parts as one, (1, tokens, ...), with zeros in rows of parts that are not there.

        It is the same object where they are the same as in the last call: siblings know their input by that.
        """
        tensors = tuple(wanted.tensors[i] for wanted in there.values())
        if self._last is not None and _are_same(self._last[0], tensors):
            return self._last[1]
        make = torch.Tensor.new_empty if len(there) == len(self._parts) else torch.Tensor.new_zeros
        joined = make(tensors[0], (1, self.num_rows, *tensors[0].shape[2:]))
        for place, tensor in zip(there, tensors, strict=True):
            joined[:, self._parts[place].rows] = tensor.reshape(1, -1, *tensor.shape[2:])
        self._last = tensors, joined
        return joined


def _are_same(some: tuple[torch.Tensor, ...], others: tuple[torch.Tensor, ...]) -> bool:
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
