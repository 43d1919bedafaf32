"""The layers of a model while it is traced: each is traced by itself, and of alike ones only the first.

A layer that cannot be traced, such as one that looks at a tensor's values, stays as one call of that layer.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..private.inductor_private import (
    FakeTensor,
    TreeSpec,
    disable_proxy_modes_tracing,
    make_fx,
    select_decomp_table,
    tree_flatten,
    tree_unflatten,
)
from .alike import alike
from .callouts import Call, Calls, call_out, leaving_calls

logger = logging.getLogger(__name__)


class Assumes(Exception):
    """A graph would be right for some numbers of rows only. The message says for which."""


def trace(run: Callable[..., Any], tensors: Sequence[torch.Tensor]) -> fx.GraphModule:
    """Trace a function of tensors to a graph of the operators that the compiler takes."""
    table = select_decomp_table()
    module: fx.GraphModule = make_fx(run, decomposition_table=table, tracing_mode="fake")(*tensors)
    return module


@dataclass(frozen=True)
class Region:
    """The trace of one layer, which serves all layers that are alike and called with such arguments.

    leaves, spec: its arguments, flattened. in_tuple: whether it returns its tensor as the first of a tuple.
    """

    layer: nn.Module
    leaves: list[Any]
    spec: TreeSpec
    module: fx.GraphModule
    calls: Calls
    in_tuple: bool

    def fits(self, layer: nn.Module, leaves: list[Any], spec: TreeSpec) -> bool:
        """Return whether this trace serves another layer, too."""
        same = spec == self.spec and all(_same_leaf(a, b) for a, b in zip(leaves, self.leaves, strict=True))
        return same and alike(self.layer, layer)

    def like(self, layer: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
        """Return an empty tensor like the layer's result."""
        (result,) = self.module.graph.output_node().args
        assert isinstance(result, fx.Node)
        value: torch.Tensor = result.meta["val"]
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


class Layers:
    """The entries of the model's outermost lists of layers. Each is one call in the graph of the whole model.

    left: names of those that could not be traced.
    """

    def __init__(self, model: nn.Module) -> None:
        lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
        nested = {inner for outer in lists for inner in outer.modules() if inner is not outer}
        self._layers = [layer for entries in lists if entries not in nested for layer in entries]
        self._names = {module: name for name, module in model.named_modules()}
        self._regions: list[Region] = []
        self._region_of: dict[nn.Module, Region] = {}
        self.left: list[str] = []

    def region_of(self, layer: Any) -> Region | None:
        return self._region_of.get(layer) if isinstance(layer, nn.Module) else None

    def renamed(self, owner: Any, region: Region, layer: nn.Module, twins: Mapping[int, Any]) -> Any:
        """Return the module, or its name, that is in the place of `owner` in another layer than the region's own."""
        if isinstance(owner, str):
            return self._names[layer] + owner.removeprefix(self._names[region.layer])
        return twins.get(id(owner), owner)

    @contextmanager
    def standing_alone(self) -> Iterator[None]:
        """Replace each layer by one call, while the context lasts."""
        own = {layer: vars(layer).get("forward") for layer in self._layers}
        try:
            for layer in self._layers:
                layer.forward = self._called_out(layer, layer.forward)
            yield
        finally:
            for layer, forward in own.items():
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def _called_out(self, layer: nn.Module, base: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            leaves, spec = tree_flatten((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

            def run(*given: torch.Tensor) -> Any:
                rest = iter(given)
                filled = [next(rest) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
                inner_args, inner_kwargs = tree_unflatten(filled, spec)
                return base(*inner_args, **inner_kwargs)

            region = self._region(layer, leaves, spec, run)
            if region is None:
                return call_out(Call(layer, lambda _, *given: _first(run(*given)), _like_first), *tensors)
            self._region_of[layer] = region
            result = call_out(Call(layer, region.like, region.like), *tensors)
            return (result,) if region.in_tuple else result

        return forward

    def _region(self, layer: nn.Module, leaves: list[Any], spec: TreeSpec, run: Callable[..., Any]) -> Region | None:
        """Return the region of a layer, traced now if none fits; None if it cannot be traced."""
        known = next((region for region in self._regions if region.fits(layer, leaves, spec)), None)
        if known is not None:
            return known
        try:
            region = self._trace(layer, leaves, spec, run)
        except Exception as error:  # of whatever the layer does
            self.left.append(self._names[layer])
            logger.warning("%s is not compiled, as it cannot be traced: %s", self._names[layer], _line(error))
            return None
        self._regions.append(region)
        return region

    def _trace(self, layer: nn.Module, leaves: list[Any], spec: TreeSpec, run: Callable[..., Any]) -> Region:
        shape = []

        def traced(*given: torch.Tensor) -> torch.Tensor:
            output = run(*given)
            shape.append(isinstance(output, tuple))
            return _first(output)

        with disable_proxy_modes_tracing(), leaving_calls() as calls:
            module = trace(traced, [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)])
        foreign = [node for node in module.graph.nodes if isinstance(attribute(module, node), FakeTensor)]
        if foreign:
            raise Assumes("it reads what another layer has computed")
        return Region(layer, leaves, spec, module, calls, shape[-1])


def attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """Return the tensor of a `get_attr` node; None for any other node."""
    return getattr(module, str(node.target)) if node.op == "get_attr" else None


def _first(output: Any) -> torch.Tensor:
    tensor: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return tensor


def _like_first(layer: nn.Module, *tensors: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor like a layer's result, which has the shape of the hidden states that come first."""
    return torch.empty_like(tensors[0])


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return str((one.shape, one.stride(), one.dtype)) == str((other.shape, other.stride(), other.dtype))
    return one is other or (type(one) is type(other) and bool(one == other))


def _line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return next(iter(str(error).splitlines()), type(error).__name__)
