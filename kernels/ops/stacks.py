"""Stacked parameters of several adapters, kept from step to step while the same adapters run together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .batched import BATCHED, Fields
from .formulas import Op

MOST_BYTES = 512 << 20  # of parameters stacked at a time: adapters beyond run one after the other

_Key = tuple[int, ...]


class _Stack(NamedTuple):
    """Stacked parameters. ops: held so that no other primitive gets the identity of one of them."""

    ops: tuple[Op, ...]
    fields: Fields


class Stacks:
    """Stacked parameters by the identities of their primitives. Those that a plan does not use go when it is made.

    most_bytes: of one plan; while the next one is made, those of both exist.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._used: dict[_Key, _Stack] = {}
        self._earlier: dict[_Key, _Stack] = {}
        self.num_bytes = 0

    def begin(self) -> None:
        """Begin a plan."""
        self._used, self._earlier, self.num_bytes = {}, self._used, 0

    def end(self) -> None:
        """End the plan: drop the stacks that it did not use."""
        self._earlier = {}

    def clear(self) -> None:
        """Drop all stacks."""
        self._used, self._earlier, self.num_bytes = {}, {}, 0

    def of(self, ops: Sequence[Op]) -> Fields | None:
        """Return the stacked parameters of primitives of one kind that can be stacked; None if there is no room."""
        key = tuple(map(id, ops))
        if (stack := self._used.get(key)) is not None:
            return stack.fields
        num_bytes = sum(_num_bytes(op) for op in ops)
        if self.num_bytes + num_bytes > self._most_bytes:
            return None
        self.num_bytes += num_bytes
        stack = self._earlier.get(key) or _Stack(tuple(ops), BATCHED[ops[0].kind].stack(ops))
        self._used[key] = stack
        return stack.fields


def _num_bytes(op: Op) -> int:
    own = (value for name, value in op.fields.items() if name not in BATCHED[op.kind].shared)
    return sum(value.nbytes for value in own if isinstance(value, torch.Tensor))
