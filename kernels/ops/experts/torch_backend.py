"""The terms of a step in torch operators, for a CPU: two products for each group of pairs and adapter.

A group's pairs adjoin, so nothing is gathered: products read factors where they lie in the arena, once, and add to y in
place. The host looks at the groups, which on a CPU is free.
"""

from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch

from .combinations import Combinations
from .routing import Routing


class TorchExpertTerms:
    """Of one module in one step."""

    def __init__(self, combinations: Combinations) -> None:
        self.num_combinations = len(combinations.members)
        self.of_row = torch.from_numpy(combinations.of_row)
        self._members = combinations.members
        self._weights = combinations.weights
        self._factors = [(op.fields["parameter"], op.fields["a"], op.fields["b"]) for op in combinations.ops]

    def add_(self, parameter: str, x: torch.Tensor, y: torch.Tensor, routing: Routing) -> None:
        """`y[i] += sum over the adapters of place i's token of weight · b[e] (a[e] x[i])`.

        x: (pairs, in). y: (pairs, out), contiguous. In the order of `routing`.
        """
        tokens = routing.tokens.numpy()
        start = 0
        for key, group in groupby(routing.keys.tolist()):
            end = start + sum(1 for _ in group)
            expert, combination = divmod(key, self.num_combinations)
            for place, number in enumerate(self._members[combination]):
                of, a, b = self._factors[number]
                if of == parameter:
                    _add_group(
                        y[start:end], x[start:end], a[expert], b[expert], self._weights[place, tokens[start:end]]
                    )
            start = end


def _add_group(
    y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weights: npt.NDArray[np.float32]
) -> None:
    """x: (pairs, in), of one expert whose factors are a: (rank, in) and b: (out, rank)."""
    if len(x) == 1:
        y[0].addmv_(b, torch.mv(a, x[0]), alpha=float(weights[0]))
        return
    h = torch.mm(x, a.T)
    alike = bool((weights == weights[0]).all())
    if not alike:
        h *= torch.from_numpy(weights)[:, None]
    y.addmm_(h, b.T, alpha=float(weights[0]) if alike else 1.0)
