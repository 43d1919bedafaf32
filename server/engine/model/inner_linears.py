"""Linear products that a module makes by itself with a weight of its own, as a mixture's router does.

Each gets an nn.Linear over the same parameters, to which adapters attach as to any other. While the module's forward
runs, its `F.linear` with that weight goes to this linear; everything else of it is as it was.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

_Call = Callable[[nn.Module, torch.Tensor], None]


class InnerLinears(TorchFunctionMode):
    """Tells of the products that modules of a model make so, in a forward pass that runs inside of this context.

    tell: called with the module and the input. Of products with a bias, only of those with the module's `bias`.
    """

    def __init__(self, modules: Iterable[nn.Module], tell: _Call) -> None:
        super().__init__()
        self._modules = {id(module.weight): module for module in modules if _may_multiply(module)}
        self._tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            x, weight, bias = _linear_arguments(*args, **(kwargs or {}))
            module = self._modules.get(id(weight))
            if module is not None and bias is getattr(module, "bias", None):
                self._tell(module, x)
        return func(*args, **(kwargs or {}))


def redirect(module: nn.Module) -> nn.Linear:
    """A linear over the module's `weight` and `bias`, that from now on makes the module's product with them."""
    weight: Any = module.weight
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=hasattr(module, "bias"), device="meta")
    linear.weight = weight
    if hasattr(module, "bias"):
        linear.bias = module.bias  # type: ignore[assignment]
    base = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Redirected(weight, linear):
            return base(*args, **kwargs)

    module.forward = forward
    return linear


class _Redirected(TorchFunctionMode):
    def __init__(self, weight: torch.Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = weight
        self._linear = linear

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            x, weight, _ = _linear_arguments(*args, **(kwargs or {}))
            if weight is self._weight:
                return self._linear(x)
        return func(*args, **(kwargs or {}))


def _may_multiply(module: nn.Module) -> bool:
    """By its shape, and not being one of the modules that are known to be products."""
    weight = module._parameters.get("weight")
    known = isinstance(module, nn.Linear | nn.Embedding) or hasattr(module, "in_features")
    return weight is not None and weight.dim() == 2 and weight.is_floating_point() and not known


def _linear_arguments(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Named as F.linear's are."""
    return input, weight, bias
