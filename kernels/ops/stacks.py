"""Parameters of several adapters stacked, kept from step to step while the same adapters run together."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .batched import BATCHED, Fields
from .formulas import Op

MOST_BYTES = 512 << 20  # of parameters stacked at a time: adapters beyond run one after the other

_Key = tuple[int, ...]


class _Stack(NamedTuple):
    """ops: held so that no other has the identity of one of them."""

    ops: tuple[Op, ...]
    fields: Fields


class Stacks:
    """By the identities of the primitives. What a step's plan has no use for goes when that plan is made.

    most_bytes: of one plan; while the next one is made there are those of both.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._used: dict[_Key, _Stack] = {}
        self._earlier: dict[_Key, _Stack] = {}
        self.num_bytes = 0

    def begin(self) -> None:
        """A plan is to be made."""
        self._used, self._earlier, self.num_bytes = {}, self._used, 0

    def end(self) -> None:
        """It is made."""
        self._earlier = {}

    def clear(self) -> None:
        self._used, self._earlier, self.num_bytes = {}, {}, 0

    def of(self, ops: Sequence[Op]) -> Fields | None:
        """Of one kind, that can be stacked; None if there is no room."""
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
