"""What an adapter is compiled against, and the checks that every compiler makes of a checkpoint's tensors."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..sites import SiteTable

_ROWS_AT_ONCE = 4096
_Model = TypeVar("_Model", bound=nn.Module)


@dataclass(frozen=True)
class Base:
    """dtype: of the compiled tensors. max_rank: the largest rank that is served.

    model: the base as transformers defines it, of its own modules but with the base's own weights, for methods that
        need either. Whoever changes it changes a copy: call `fresh_model`.
    max_dense_delta: most bytes that one adapter's dense deltas may take together.
    task: which task of a method that has several (multitask prompt tuning, Poly).
    replaced: site to the weight that the adapter brings in place of the base's, as `parameter` then has it.
    """

    table: SiteTable
    dtype: torch.dtype
    max_rank: int = 512
    model: nn.Module | None = None
    max_dense_delta: int = 1 << 30
    task: int = 0
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def parameter(self, site: str, name: str) -> torch.Tensor | None:
        """The base's own `weight` or `bias` at a module, as it is stored; None if it has none."""
        if name == "weight" and site in self.replaced:
            return self.replaced[site]
        if self.model is None:
            return None
        value = getattr(self.model.get_submodule(site), name, None)
        return value.detach() if isinstance(value, torch.Tensor) else None

    def weight(self, site: str) -> torch.Tensor | None:
        return self.parameter(site, "weight")

    def matrix(self, site: str, *, on_device: bool = False) -> torch.Tensor:
        """The weight of a linear as (out_features, in_features) in float32, on the CPU as checkpoints are.

        on_device: where the base is, for what would take long on a CPU. Raises UnsupportedAdapter without a weight.
        """
        weight = self.weight(site)
        if weight is None or not weight.is_floating_point() or weight.dim() != 2:
            raise UnsupportedAdapter(
                f"this method needs the base's weight at {site}, which is quantised or not at hand", param="peft_type"
            )
        matrix = weight.T if self.table.sites[site].transposed else weight
        return matrix.to(matrix.device if on_device else "cpu", torch.float32)

    def fresh_model(self) -> nn.Module:
        """Modules to change at will, over the base's own weights. Raises UnsupportedAdapter if there is no model."""
        if self.model is None:
            raise UnsupportedAdapter("this method needs the base's model, which is not at hand", param="peft_type")
        return twin(self.model)


def twin(model: _Model) -> _Model:
    """The same modules once more, without hooks, over the very same parameters and buffers."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied = copy.deepcopy(model, shared)
    for module in copied.modules():
        module.__dict__.pop("forward", None)  # another layout of the weights, bound to the original
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return copied


class Named(NamedTuple):
    """A tensor with its key in the checkpoint."""

    key: str
    tensor: torch.Tensor

    def transposed(self) -> "Named":
        return Named(self.key, self.tensor.T)

    def require_shape(self, shape: tuple[int, ...], why: str) -> "Named":
        """Raises InvalidAdapter, saying `why` the shape must be this one."""
        if self.tensor.shape != shape:
            got = tuple(self.tensor.shape)
            raise InvalidAdapter(f"{self.key} has the shape {got}; {why}: {shape}", param="files")
        return self

    def weights(self) -> torch.Tensor:
        """In float32, to compute with. Raises InvalidAdapter for what is not finite."""
        return self.converted(torch.float32)

    def converted(self, dtype: torch.dtype, scaling: float = 1.0) -> torch.Tensor:
        """Multiplied in float32, rounded once, contiguous. Raises InvalidAdapter for what is not finite then."""
        if not self.tensor.is_floating_point():
            kind = str(self.tensor.dtype).removeprefix("torch.")
            raise InvalidAdapter(f"{self.key} holds {kind}, where weights should be", param="files")
        scaled = self.tensor if scaling == 1.0 else self.tensor.float() * scaling
        result = scaled.to(dtype).contiguous()
        if not is_finite(result):
            self._refuse(dtype)
        return result

    def _refuse(self, dtype: torch.dtype) -> None:
        if not self.tensor.isfinite().all():
            raise InvalidAdapter(f"{self.key} holds NaN or infinity", param="files")
        name = str(dtype).removeprefix("torch.")
        raise InvalidAdapter(f"{self.key} is too large for {name}, in which this base is served", param="files")


def is_finite(tensor: torch.Tensor) -> bool:
    """Without NaN or infinity, in one pass: torch's own `isfinite` takes four."""
    if not tensor.numel():
        return True
    least, most = tensor.aminmax()  # NaN if any is
    return math.isfinite(least.item()) and math.isfinite(most.item())


def is_same(base: Base, site: str, copy: Named) -> bool:
    """Whether a copy of the weight at a site, which may come along with an adapter, is the base's own.

    Raises UnsupportedAdapter where there is nothing to compare it with.
    """
    own = base.weight(site)
    if own is None:
        raise UnsupportedAdapter(
            f"{copy.key} is not supported yet: there is no weight of the base to compare it with; "
            "save the adapter with save_embedding_layers=False",
            param="files",
        )
    if own.shape != copy.tensor.shape or not copy.tensor.is_floating_point() or not own.is_floating_point():
        return False
    return _same(own, copy.tensor)


def _same(own: torch.Tensor, copy: torch.Tensor) -> bool:
    """Equal up to the rounding of the coarser of the two types."""
    coarse = max((own.dtype, copy.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = torch.finfo(coarse).eps
    return all(
        torch.allclose(x.to(coarse).float(), y.to(device=x.device, dtype=coarse).float(), rtol=tolerance, atol=1e-7)
        for x, y in zip(own.detach().split(_ROWS_AT_ONCE), copy.split(_ROWS_AT_ONCE), strict=True)
    )
