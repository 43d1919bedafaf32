"""Wrapped modules run a step part by part, over the states of its sequences."""

from typing import Any

import torch
from torch import nn

from peftserve.adapters.bypass import StateKey
from peftserve.server.engine.model.state.mixers import Mixers
from peftserve.server.engine.model.state.parts import Part
from peftserve.server.engine.model.state.pool import StatePool
from peftserve.server.engine.model.state.tracing import Mixer, Output, StateShape

WIDTH = 4
FLOAT = torch.float32


class RunningSum(nn.Module):
    """Returns the sums so far, twice as wide ones with a shape of their own, and what is of no token.

    forgets: whether it does so as some do: a chunk of several tokens begins anew.
    """

    def __init__(self, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets

    def forward(self, x: torch.Tensor, cache: Any, scale: torch.Tensor | None = None) -> tuple[Any, ...]:
        state = cache.get_recurrent_state(0)
        if state is None or (self.forgets and x.shape[1] > 1):
            state = x.new_zeros(x.shape[0], WIDTH)
        sums = state[:, None] + x.cumsum(1)
        cache.update_recurrent_state(sums[:, -1], 0)
        weights = x.new_zeros(x.shape[0], 1)
        return sums if scale is None else sums * scale, sums.unflatten(-1, (2, 2)) * 2, weights, None


def wrapped(forgets: bool) -> tuple[RunningSum, Mixers]:
    module = RunningSum(forgets)
    outputs = (Output(torch.Size([WIDTH]), FLOAT), Output(torch.Size([2, 2]), FLOAT), None, None)
    shapes = {StateKey("recurrent", 0, 0): StateShape(torch.Size([WIDTH]), FLOAT)}
    pool = StatePool(shapes, 3, torch.device("cpu"))
    for state in pool.states.values():
        state.fill_(100)  # of sequences that were here before
    return module, Mixers({"sum": module}, [Mixer("sum", "cache", outputs, True, forgets)], pool)


def check_steps(module: RunningSum, mixers: Mixers) -> None:
    """Run two sequences: a chunk of each, then a chunk of one beside a token of the other, then a token of each."""
    xs = torch.randn(2, 6, WIDTH)
    sums = xs.cumsum(1)
    slots = [torch.tensor([2]), torch.tensor([0])]
    steps = [
        ([Part(slice(0, 2), slots[0], 1, 2, True), Part(slice(2, 6), slots[1], 1, 4, True)], [(0, 0, 2), (1, 0, 4)]),
        (
            [Part(torch.tensor([3]), slots[1], 1, 1, False), Part(slice(0, 3), slots[0], 1, 3, False)],
            [(0, 2, 5), (1, 4, 5)],
        ),
        ([Part(None, torch.tensor([2, 0]), 2, 1, False)], [(0, 5, 6), (1, 5, 6)]),
    ]
    for parts, spans in steps:
        mixers.parts = parts
        x = torch.cat([xs[place, begin:end] for place, begin, end in spans])[None]
        right = torch.cat([sums[place, begin:end] for place, begin, end in spans])[None]
        first, second, *rest = module(x, None)  # by position, as some are called
        torch.testing.assert_close(first, right)
        torch.testing.assert_close(second, right.unflatten(-1, (2, 2)) * 2)
        assert rest == [None, None]


def test_states_follow_their_sequences_through_chunks_and_decodes() -> None:
    check_steps(*wrapped(forgets=False))


def test_what_forgets_is_run_token_by_token() -> None:
    check_steps(*wrapped(forgets=True))


def test_tensors_by_token_are_cut_and_others_are_given_as_they_are() -> None:
    module, mixers = wrapped(forgets=False)
    mixers.parts = [Part(slice(0, 2), torch.tensor([0]), 1, 2, True), Part(slice(2, 5), torch.tensor([1]), 1, 3, True)]
    x, by_token = torch.ones(1, 5, WIDTH), torch.arange(5.0).view(1, 5, 1)
    first, *_ = module(x, cache=None, scale=by_token)
    assert first[0, :, 0].tolist() == [0, 2, 2, 6, 12]
    first, *_ = module(x, cache=None, scale=torch.full((1,), 3.0))
    assert first[0, :, 0].tolist() == [3, 6, 3, 6, 9]
