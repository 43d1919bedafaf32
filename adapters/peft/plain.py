"""The numbers that a module of the base multiplies by, where it holds them and where it is quantised.

A quantised module keeps codes and scales, under types of tensors, classes or a `forward` of its own, and there are
ever more of them. So none is trusted by its name: a matrix is the module's weight if the module's own outputs say so.
Knows no methods and no checkpoints.
"""

import logging
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn

from ..private.torch_private import copy_with_parameter, has_hooks
from ..sites import Site, SiteKind
from .dequantise import dequantiser
from .memory import is_servers

logger = logging.getLogger(__name__)

PLAIN = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})

_PLAIN_CLASSES = (nn.Linear, nn.Embedding)
_PROBES = 16
_OUTLIER = 8.0  # a probe's first feature: beside it, inputs that are rounded with one scale for a row lose digits
_ROWS_AT_ONCE = 512
# Differences of a module's outputs from those of a matrix, to the root mean square of these: with inputs as they are,
# 16-bit types round to 0.002 of it; fp8 rounds inputs to 0.025, int8 beside an outlier to 0.012 or more.
_EXACT = 0.006
_ROUNDED = 0.1


@dataclass(frozen=True)
class Weight:
    """The weight of a module.

    values: in the layout in which the module stores it, of a floating type.
    rounds_inputs: whether the module rounds its inputs before it multiplies. Then its output is close to `values` times
        the input, but a part of `values` subtracted from the output is not the same as one subtracted from the weight.
    """

    values: torch.Tensor
    rounds_inputs: bool = False


def is_plain(tensor: object) -> TypeGuard[torch.Tensor]:
    """Return whether a tensor holds floating-point numbers as they are: neither codes nor a tensor class of its own."""
    strided = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout is torch.strided  # type: ignore[attr-defined]
    return strided and tensor.dtype in PLAIN  # type: ignore[attr-defined]


def has_plain_parameters(module: nn.Module) -> bool:
    """Return whether all of a module's own parameters are plain."""
    return all(is_plain(parameter) for parameter in module.parameters(recurse=False))


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module computes `F.linear` of its own weight and bias, and nothing else."""
    return type(module) is nn.Linear and _is_untouched(module) and has_plain_parameters(module)


def read_weight(module: nn.Module, site: Site, dtype: torch.dtype) -> Weight | None:
    """Return the weight of a module; None where it cannot be read. dtype: of its inputs."""
    if type(module) in _PLAIN_CLASSES and _is_untouched(module) and has_plain_parameters(module):
        return Weight(module.get_parameter("weight").detach())
    if site.kind is SiteKind.INNER:  # by definition a product with the weight itself
        return Weight(module.get_parameter("weight").detach()) if has_plain_parameters(module) else None
    for read in _ways(module, site, dtype):
        try:
            with torch.no_grad():
                if (weight := _checked(read(), module, site, dtype)) is not None:
                    return weight
        except Exception as error:  # packages of quantised types raise whatever is at hand
            if is_servers(error):
                raise
            logger.debug("%s cannot be read in one way: %s", site.name, error)
    return None


def compute_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of a model's activations.

    It is the embedding's, or if that is quantised, the one the model was loaded in.
    """
    embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    weight = getattr(embedding, "weight", None)
    loaded = getattr(getattr(model, "config", None), "dtype", None)
    if is_plain(weight):
        return weight.dtype
    if isinstance(loaded, torch.dtype):
        return loaded
    return next((p.dtype for p in model.parameters() if is_plain(p)), torch.float32)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's tensors; the CPU if it has none."""
    tensors = (*module.parameters(), *module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")


def _is_untouched(module: nn.Module) -> bool:
    """Return whether a module runs its class's `forward` alone."""
    return "forward" not in vars(module) and not has_hooks(module)


def _ways(module: nn.Module, site: Site, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
    """Iterate over ways to get a weight, cheap ones first.

    They are the parameter, what its format or its type of tensor dequantises it to, and the outputs for unit vectors.
    """
    weight = getattr(module, "weight", None)
    if is_plain(weight):
        yield lambda: weight
    if (dequantise := dequantiser(module)) is not None:
        yield lambda: dequantise(module)
        yield lambda: dequantise(module).T.contiguous()
    elif isinstance(weight, torch.Tensor) and type(weight) not in (torch.Tensor, nn.Parameter):
        yield weight.dequantize
    if site.kind is not SiteKind.EMBEDDING:
        yield lambda: _read_off(module, site, dtype)


def _read_off(module: nn.Module, site: Site, dtype: torch.dtype) -> torch.Tensor:
    """Read a weight off a module's outputs for unit vectors, in float32.

    Returns (out_features, in_features), or the other way round for a transposed module.
    """
    device, bare = device_of(module), _without_bias(module)
    columns = []
    for ids in torch.arange(site.in_features, device=device).split(_ROWS_AT_ONCE):
        columns.append(_odd_part(bare, nn.functional.one_hot(ids, site.in_features).to(dtype)))
    rows = torch.cat(columns)
    return rows if site.transposed else rows.T.contiguous()


def _odd_part(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return a module's output for x without its bias, in float32."""
    twice: torch.Tensor = module(x).float() - module(-x).float()
    return twice / 2


def _without_bias(module: nn.Module) -> nn.Module:
    """Return a copy without the bias, over the same tensors. A bias costs digits of a 16-bit output."""
    bias = dict(module.named_parameters(recurse=False)).get("bias")
    if bias is None:
        return module
    bare = copy_with_parameter(module, "bias", nn.Parameter(torch.zeros_like(bias), requires_grad=False))
    if isinstance(own := vars(bare).get("forward"), types.MethodType) and own.__self__ is module:
        bare.forward = types.MethodType(own.__func__, bare)
    return bare


def _checked(values: object, module: nn.Module, site: Site, dtype: torch.dtype) -> Weight | None:
    """Return the values as a weight; None unless the module multiplies by them."""
    embeds = site.kind is SiteKind.EMBEDDING
    shape = (
        (site.in_features, site.out_features) if embeds or site.transposed else (site.out_features, site.in_features)
    )
    if not is_plain(values) or tuple(values.shape) != shape:
        return None
    values = values.detach()
    if embeds:
        ids = torch.linspace(0, site.in_features - 1, _PROBES, device=values.device).long()
        return Weight(values) if _error(module(ids), values[ids].float() * site.embed_scale) <= _EXACT else None
    matrix, bare = values.float() if site.transposed else values.float().T, _without_bias(module)
    x = torch.randn(_PROBES, site.in_features, generator=torch.Generator().manual_seed(0)).to(values.device, dtype)
    if _error(_odd_part(bare, x), x.float() @ matrix) > _ROUNDED:
        return None
    x[:, 0] = _OUTLIER
    exact = _error(_odd_part(bare, x), x.float() @ matrix) <= _EXACT
    return Weight(values, rounds_inputs=not exact)


def _error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the error relative to the root mean square of what is expected; NaN if either holds NaN."""
    return ((got.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30)).item()
