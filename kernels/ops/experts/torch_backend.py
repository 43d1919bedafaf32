"""The terms of a step in torch operators, for a CPU: two products for each group of pairs and adapter.

The pairs of a group adjoin, so nothing is gathered: products read factors where they lie in the arena, once, and add to
y in place. The host looks at the groups, which is free on a CPU. Views of an expert's factors are kept while the batch
stays, since making one costs as much as a small product.
"""

from collections.abc import Sequence
from itertools import groupby

import torch

from .combinations import Combinations
from .routing import Routing, route


class TorchExpertTerms:
    """`ExpertTerms` of one module in one step."""

    def __init__(self, combinations: Combinations) -> None:
        self.num_combinations = len(combinations.members)
        self.of_row = torch.from_numpy(combinations.of_row)
        self._ops = combinations.ops
        self._members = combinations.members
        self._weights: list[list[float]] = combinations.weights.tolist()
        self._views: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def route(self, experts: torch.Tensor, num_experts: int) -> Routing:
        """Sort the pairs of the step. experts: (tokens, k), the experts of each token."""
        return route(experts, self.of_row, num_experts, self.num_combinations)

    def add_(self, parameter: str, x: torch.Tensor, y: torch.Tensor, routing: Routing) -> None:
        """Compute `y[i] += sum over the adapters of place i's token of weight · b[e] (a[e] x[i])`.

        x: (pairs, in). y: (pairs, out), contiguous. Both in the order of `routing`.
        """
        tokens = routing.tokens.tolist()
        start = 0
        for key, group in groupby(routing.keys.tolist()):
            end = start + sum(1 for _ in group)
            expert, combination = divmod(key, self.num_combinations)
            for place, number in enumerate(self._members[combination]):
                if self._ops[number].fields["parameter"] == parameter:
                    row = self._weights[place]
                    weights = [row[token] for token in tokens[start:end]]
                    _add_group(y[start:end], x[start:end], *self._factors(number, expert), weights)
            start = end

    def _factors(self, number: int, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of an expert. a: (rank, in). b: (out, rank)."""
        key = number, expert
        if (there := self._views.get(key)) is None:
            fields = self._ops[number].fields
            there = self._views[key] = fields["a"][expert], fields["b"][expert]
        return there


def _add_group(y: torch.Tensor, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, weights: Sequence[float]) -> None:
    """Add the terms of one group. x: (pairs, in). a: (rank, in) and b: (out, rank), of the expert of all of them."""
    if len(weights) == 1:
        y[0].addmv_(b, torch.mv(a, x[0]), alpha=weights[0])
        return
    h = torch.mm(x, a.T)
    alike = len(set(weights)) == 1
    if not alike:
        h *= torch.tensor(weights, dtype=h.dtype)[:, None]
    y.addmm_(h, b.T, alpha=weights[0] if alike else 1.0)
