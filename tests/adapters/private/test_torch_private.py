import torch
from torch import nn

from peftserve.adapters.private.torch_private import NAMES, copy_with_parameter, has_hooks


def test_every_name_is_there() -> None:
    for name in NAMES:
        owner, _, attribute = name.rpartition(".")
        assert owner == "torch.nn.Module"
        assert hasattr(nn.Module(), attribute), name


def test_hooks_of_both_kinds_are_seen() -> None:
    module = nn.Linear(2, 3)
    assert not has_hooks(module)
    for register in (module.register_forward_hook, module.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert has_hooks(module)
        handle.remove()
        assert not has_hooks(module)


def test_a_copy_has_the_parameter_and_the_original_keeps_its_own() -> None:
    module = nn.Linear(2, 3)
    before, zeros, x = module.bias, nn.Parameter(torch.zeros(3)), torch.randn(4, 2)
    copied = copy_with_parameter(module, "bias", zeros)
    assert (copied.get_parameter("bias"), module.get_parameter("bias")) == (zeros, before)
    assert copied.get_parameter("weight") is module.weight
    torch.testing.assert_close(copied(x) + before, module(x))
