from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.server.engine.model.wrapped_module import WrappedModule, flat_rows


class Plan:
    """Doubles the input, adds to the output what the base gives for the first row, and the sum of a stream."""

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x if x.is_floating_point() else x

    def after(
        self, x: torch.Tensor, y: torch.Tensor, module: Callable[..., torch.Tensor], inputs: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        return y.add_(module(x[:1]) + inputs["norm"].sum() if len(x) else 0)


PLAN: Any = Plan()
STREAMS = {"norm": torch.ones(2)}


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (1, 0, 4)])
def test_a_linear_with_and_without_a_plan(shape: tuple[int, ...]) -> None:
    linear = nn.Linear(4, 5).requires_grad_(False)
    wrapped, x = WrappedModule("name", linear, linear.forward, 5), torch.randn(shape)
    known = linear(x)
    assert torch.equal(wrapped.run(x, None, {}), known)
    assert wrapped.run(x, None, {}, known) is known
    added = linear(flat_rows(x)[:1]) + 2 if x.numel() else 0
    assert torch.allclose(wrapped.run(x, PLAN, STREAMS), linear(2 * x) + added)
    assert torch.allclose(wrapped.run(x, PLAN, STREAMS, linear(x)), known + added), "an output that is known is used"


def test_an_embedding_gives_zeros_for_ids_that_it_does_not_know() -> None:
    embedding = nn.Embedding(4, 5).requires_grad_(False)
    wrapped, ids = WrappedModule("name", embedding, embedding.forward, 5), torch.tensor([[3, 4, 0]])
    assert wrapped.knows(ids).tolist() == [[True, False, True]]
    found = wrapped.run(ids, PLAN, STREAMS)
    assert found.shape == (1, 3, 5)
    added = embedding.weight[3] + 2
    assert torch.equal(found[0], torch.stack([embedding.weight[3], torch.zeros(5), embedding.weight[0]]) + added)
