"""Parts of torch that adapters/ uses beyond its documentation."""

import copy
from collections.abc import Mapping

from torch import nn

NAMES: Mapping[str, str] = {
    "torch.nn.Module._forward_hooks": (
        "Hooks behind `forward` (`has_hooks`): a module that has any computes something else than its weight. torch "
        "adds hooks and removes them by their handles, but cannot be asked for those that others have added."
    ),
    "torch.nn.Module._forward_pre_hooks": "The same for hooks before `forward`.",
    "torch.nn.Module._parameters": (
        "A module's own parameters, of which a shallow copy needs a dictionary of its own (`copy_with_parameter`): "
        "`copy.copy` shares it, so that `register_parameter` on the copy would change the original. `copy.deepcopy` "
        "with a memo of all tensors would do, and copies everything else that the module holds."
    ),
}


def has_hooks(module: nn.Module) -> bool:
    """Return whether hooks run before or behind a module's `forward`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def copy_with_parameter(module: nn.Module, name: str, value: nn.Parameter) -> nn.Module:
    """Return a shallow copy of a module in which one parameter is another; all else is the original's."""
    copied = copy.copy(module)
    copied._parameters = {**module._parameters, name: value}
    return copied
