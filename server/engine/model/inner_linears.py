"""Linear products that a module makes by itself with a weight of its own, as a mixture's router does.

Each gets an nn.Linear over the same parameters, to which adapters attach as to any other. While the module's forward
runs, its `F.linear` with that weight goes to this linear; everything else of it is as it was. The weight may be cast
before: routers work in float32, whatever the model's type.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from peftserve.adapters.peft.plain import is_plain

Product = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # input, weight, bias


_CASTS = frozenset({torch.Tensor.to, torch.Tensor.type, torch.Tensor.float})


class _Products(TorchFunctionMode):
    """Inside, each `F.linear` is first offered to `take`, and made as it was where that returns None.

    A weight that was cast from a parameter inside is offered as that parameter.
    """

    def __init__(self, take: Callable[[Product], torch.Tensor | None]) -> None:
        super().__init__()
        self._take = take
        self._cast: dict[int, tuple[torch.Tensor, nn.Parameter]] = {}  # by the id of what they were cast to

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.linear:
            x, weight, bias = _product(*args, **(kwargs or {}))
            _, own = self._cast.get(id(weight), (weight, weight))
            if (taken := self._take((x, own, bias))) is not None:
                return taken
        output = func(*args, **(kwargs or {}))
        if func in _CASTS and isinstance(args[0], nn.Parameter) and output is not args[0]:
            self._cast[id(output)] = output, args[0]
        return output


class _Product(nn.Linear):
    """A linear in the type of its input."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


def inner_linears(modules: Iterable[nn.Module], tell: Callable[[nn.Module, torch.Tensor], None]) -> TorchFunctionMode:
    """Return a context in which `tell` is called with the module and the input of each such product of `modules`."""
    by_weight = {id(module.weight): module for module in modules if _may_multiply(module)}

    def take(product: Product) -> None:
        module = by_weight.get(id(product[1]))
        if module is not None and _is_own(module, product):
            tell(module, product[0])

    return _Products(take)


def redirect(module: nn.Module) -> nn.Linear:
    """Return a linear over the module's `weight` and `bias`, which from now on makes the module's product with them."""
    weight: Any = module.weight
    linear = _Product(weight.shape[1], weight.shape[0], bias=hasattr(module, "bias"), device="meta")
    linear.weight = weight
    if hasattr(module, "bias"):
        linear.bias = module.bias  # type: ignore[assignment]
    base = module.forward

    def take(product: Product) -> torch.Tensor | None:
        return linear(product[0]) if _is_own(module, product) else None

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _Products(take):
            return base(*args, **kwargs)

    module.forward = forward
    return linear


def _is_own(module: nn.Module, product: Product) -> bool:
    """Return whether a product is with the module's weight, and with its bias if it has one."""
    return product[1] is module.weight and product[2] is getattr(module, "bias", None)


def _may_multiply(module: nn.Module) -> bool:
    """Return whether a module has a matrix as its weight and is none of the classes whose forward is one product."""
    weight = dict(module.named_parameters(recurse=False)).get("weight")  # no property that computes one
    known = isinstance(module, nn.Linear | nn.Embedding) or hasattr(module, "in_features")
    return is_plain(weight) and weight.dim() == 2 and not known


def _product(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Product:
    """Bind the arguments of F.linear, which may come by these names."""
    return input, weight, bias
