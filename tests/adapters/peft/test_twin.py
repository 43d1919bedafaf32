"""A twin of a model: new modules, the same tensors, and copies of what modules carry beside their class."""

import functools
import types
from typing import Any

import pytest
import torch
from torch import nn

from peftserve.adapters.peft.twin import carries_extras, twin


def doubled(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return 2 * nn.Linear.forward(self, x)


def doubled_of(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    return doubled(module, x)


class State:
    def __init__(self) -> None:
        self.codes = torch.ones(3)
        self.scales = {"rows": [torch.ones(2)]}


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)


def test_parameters_and_buffers_are_the_very_same(model: nn.Sequential) -> None:
    model.register_buffer("ids", torch.arange(3))
    copied = twin(model)
    assert not carries_extras(model)
    assert copied[0] is not model[0]
    assert [id(t) for t in copied.state_dict(keep_vars=True).values()] == [
        id(t) for t in model.state_dict(keep_vars=True).values()
    ]


def test_tensors_that_are_neither_are_shared_too(model: nn.Sequential) -> None:
    """Otherwise an 8-bit base would be in memory twice."""
    state: Any = State()
    model[0].state = state
    copied: Any = twin(model)[0]
    assert copied.state is not state
    assert copied.state.codes is state.codes
    assert copied.state.scales["rows"][0] is state.scales["rows"][0]


@pytest.mark.parametrize("bind", [types.MethodType, lambda f, module: functools.partial(doubled_of, module)])
def test_a_forward_of_its_own_is_the_copys_own(model: nn.Sequential, bind: Any) -> None:
    model[0].forward = bind(doubled, model[0])
    copied, x = twin(model), torch.randn(2, 4)
    assert carries_extras(model)
    torch.testing.assert_close(copied(x), model(x))
    model[0]._parameters["weight"] = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    assert not torch.equal(copied(x), model(x))


def test_hooks_come_along(model: nn.Sequential) -> None:
    model[1].register_forward_hook(lambda module, args, output: output + 1)
    x = torch.randn(2, 4)
    assert carries_extras(model)
    torch.testing.assert_close(twin(model)(x), model(x))


def test_a_closure_over_the_original_does_not(model: nn.Sequential) -> None:
    """It is told apart by its outputs, and never runs the module that is served."""
    original = model[0]
    original.forward = lambda x: doubled(original, x)
    copied, x = twin(model), torch.randn(2, 4)
    assert carries_extras(model)
    assert not torch.equal(copied(x), model(x))
