"""The base that an adapter is compiled against, and the checks that every compiler makes of a checkpoint's tensors."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import InvalidAdapter, UnsupportedAdapter
from ..sites import Site, SiteKind, SiteTable
from .dequantise import is_quantised_again
from .naming import Naming
from .patterns import Deadline
from .plain import compute_dtype, has_plain_parameters, is_plain, read_weight
from .twin import twin

_ROWS_AT_ONCE = 4096
_TAKES_CODES = ("HRA", "PEANUT")  # without an error, where it has as many codes as numbers


@dataclass(frozen=True)
class Base:
    """The base, with the limits of the server.

    dtype: of the compiled tensors. max_rank: the largest rank that is served.
    model: the base as transformers defines it, of its own modules but with the base's own weights, for methods that
        need either. It is shared: to change or run it, call `fresh_model` for a copy.
    max_dense_delta: most bytes that one adapter's dense deltas may take together, and its bases of full rank.
    task: the task to compile, of a method that has several (multitask prompt tuning, Poly).
    replaced: site to the weight that the adapter brings in place of the base's; `weight` then returns it. biases: the
        same for `parameter`.
    resized: sites as the base's modules are, where the table has them with another vocabulary.
    runs: whether the model, run as it is, computes what is served.
    names: of modules in the model, by those that the table and the adapter have for them; others are the same.
    deadline: of all expressions of the adapter that is compiled.
    """

    table: SiteTable
    dtype: torch.dtype
    max_rank: int = 512
    model: nn.Module | None = None
    max_dense_delta: int = 1 << 30
    task: int = 0
    replaced: Mapping[str, torch.Tensor] = field(default_factory=dict)
    biases: Mapping[str, torch.Tensor] = field(default_factory=dict)
    resized: Mapping[str, Site] = field(default_factory=dict)
    runs: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=Deadline)

    def renamed(self, naming: Naming) -> "Base":
        """Return the base under an adapter's names."""
        modules = (*self.table.sites, *self.table.other_modules)
        return replace(
            self, table=naming.renamed(self.table), names={naming.theirs(module): module for module in modules}
        )

    def module(self, name: str) -> nn.Module:
        """Return a module of the model, by the table's name."""
        assert self.model is not None
        return self.model.get_submodule(self.names.get(name, name))

    def parameter(self, site: str, name: str) -> torch.Tensor | None:
        """Return the base's own parameter of a module, such as its `bias`; None if it has none.

        Raises UnsupportedAdapter where it is quantised.
        """
        if name == "bias" and site in self.biases:
            return self.biases[site]
        value = None if self.model is None else getattr(self.module(site), name, None)
        if value is not None and not is_plain(value):
            raise UnsupportedAdapter(
                f"this adapter needs the {name} of {site}, {self.form}, which cannot be read",
                param="peft_type",
            )
        return None if value is None else value.detach()

    @property
    def compute_dtype(self) -> torch.dtype:
        """Return the dtype of the base's activations."""
        return self.dtype if self.model is None else compute_dtype(self.model)

    def weight(self, site: str, method: str, *, rounded_inputs: bool = False) -> torch.Tensor:
        """Return the weight of a linear or an embedding in its stored layout, dequantised where it is quantised.

        method: named in the error. rounded_inputs: accept a module that quantises its inputs as well. Methods that
        change the weight must not: PEFT multiplies their change by the rounded inputs, and a bypass by others.
        Raises UnsupportedAdapter for a weight that cannot be read, or is not accepted.
        """
        if site in self.replaced:
            return self.replaced[site]
        if self.model is None:
            raise UnsupportedAdapter(
                f"{method} needs the base's weight at {site}, which is not at hand", param="peft_type"
            )
        if method in _TAKES_CODES:
            self.require_floats(site, method, "takes these codes for the weight")
        weight = read_weight(self.module(site), self._own_site(site), self.compute_dtype)
        if weight is None or (weight.rounds_inputs and not rounded_inputs):
            why = "cannot be read" if weight is None else "is multiplied by inputs that are quantised too"
            raise UnsupportedAdapter(
                f"{method} is not supported on this base: it needs the weight of {site}, {self.form}, which {why}",
                param="peft_type",
            )
        return weight.values

    def matrix(self, site: str, method: str, *, on_device: bool = False, rounded_inputs: bool = False) -> torch.Tensor:
        """Return the weight of a linear as (out_features, in_features) in float32, on the CPU as checkpoints are.

        on_device: leave it on the base's device, for work that would take long on a CPU. Raises UnsupportedAdapter.
        """
        weight = self.weight(site, method, rounded_inputs=rounded_inputs)
        matrix = weight.T if self.table.sites[site].transposed else weight
        return matrix.to(matrix.device if on_device else "cpu", torch.float32)

    def require_own_inputs(self, site: str, method: str) -> None:
        """Raise UnsupportedAdapter if the module quantises its inputs, which PEFT's module of `method` does not."""
        if self.model is not None:
            weight = read_weight(self.module(site), self._own_site(site), self.compute_dtype)
            if weight is not None and weight.rounds_inputs:
                raise UnsupportedAdapter(
                    f"{method} is not supported on this base: {site}, {self.form}, quantises its inputs too",
                    param="peft_type",
                )

    def require_floats(self, site: str, method: str, what: str) -> None:
        """Raise UnsupportedAdapter if the module stores integers. what: PEFT does with that type, for the message."""
        weight = None if self.model is None else getattr(self.module(site), "weight", None)
        if isinstance(weight, torch.Tensor) and not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise UnsupportedAdapter(
                f"{method} is not supported on this base: {site}, {self.form}, stores {kind}, and PEFT {what}",
                param="peft_type",
            )

    def require_one_rounding(self, site: str, method: str) -> None:
        """Raise UnsupportedAdapter if PEFT, to load an adapter of `method`, quantises the base's weight again."""
        if self.model is not None and is_quantised_again(self.module(site)):
            raise UnsupportedAdapter(
                f"{method} is not supported on this base: PEFT takes its initial factors from {site}, {self.form}, and "
                "quantises what is left anew; convert it to a plain LoRA (path_initial_model_for_weight_conversion)",
                param="init_lora_weights",
            )

    def is_quantised(self, site: str) -> bool:
        """Return whether the module would multiply a weight put in place of its own differently than its own."""
        if self.model is None:
            return False
        module = self.module(site)
        if not has_plain_parameters(module):
            return True
        if self.table.sites[site].kind is SiteKind.NORM:
            return False
        weight = read_weight(module, self._own_site(site), self.compute_dtype)
        return weight is None or weight.rounds_inputs

    def _own_site(self, site: str) -> Site:
        return self.resized.get(site) or self.table.sites[site]

    @property
    def form(self) -> str:
        """Return, in words, the form of the base's weights where they are not plain numbers: `quantised (...)`."""
        config: Any = getattr(getattr(self.model, "config", None), "quantization_config", None)
        method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
        name = getattr(method, "value", method)  # methods that transformers knows are members of an enumeration
        return f"quantised ({name})" if name else "quantised"

    def fresh_model(self, method: str) -> nn.Module:
        """Return a copy of the model to change and to run at will, over the base's own weights.

        Raises UnsupportedAdapter, naming `method`, if there is no model, or none that computes what is served.
        """
        if self.model is None:
            raise UnsupportedAdapter(f"{method} needs the base's model, which is not at hand", param="peft_type")
        if not self.runs:
            raise UnsupportedAdapter(
                f"{method} is not supported on this base, {self.form}: the base would have to read the virtual tokens, "
                "and a copy of it for that does not compute what it computes",
                param="peft_type",
            )
        return twin(self.model)


class NamedTensor(NamedTuple):
    """A tensor with its key in the checkpoint."""

    key: str
    tensor: torch.Tensor

    def transposed(self) -> "NamedTensor":
        """Return the transpose under the same key."""
        return NamedTensor(self.key, self.tensor.T)

    def require_shape(self, shape: tuple[int, ...], why: str) -> "NamedTensor":
        """Return itself. Raises InvalidAdapter if its shape is another; `why` says what takes this shape."""
        if self.tensor.shape != shape:
            got = tuple(self.tensor.shape)
            raise InvalidAdapter(f"{self.key} has the shape {got}; {why}: {shape}", param="files")
        return self

    def weights(self) -> torch.Tensor:
        """Return it in float32, to compute with. Raises InvalidAdapter for NaN and infinity."""
        return self.converted(torch.float32)

    def converted(self, dtype: torch.dtype, scaling: float = 1.0) -> torch.Tensor:
        """Return it times `scaling` in `dtype`, contiguous: multiplied in float32, rounded once.

        Raises InvalidAdapter for integers, and where the result holds NaN or infinity.
        """
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
    """Return whether a tensor is without NaN and infinity, in one pass: torch's own `isfinite` takes four."""
    if not tensor.numel():
        return True
    least, most = tensor.aminmax()  # NaN if any number is
    return math.isfinite(least.item()) and math.isfinite(most.item())


def is_same(base: Base, site: str, copy: NamedTensor) -> bool:
    """Return whether a copy of the weight at a site, which may come along with an adapter, is the base's own.

    Raises UnsupportedAdapter where there is no weight to compare it with.
    """
    if base.model is None:
        raise UnsupportedAdapter(
            f"{copy.key} is not supported yet: there is no weight of the base to compare it with; "
            "save the adapter with save_embedding_layers=False",
            param="files",
        )
    own = base.weight(site, f"comparing {copy.key} with the base's", rounded_inputs=True)
    if own.shape != copy.tensor.shape or not copy.tensor.is_floating_point():
        return False
    return _same(own, copy.tensor)


def _same(own: torch.Tensor, copy: torch.Tensor) -> bool:
    """Return whether two tensors are equal up to the rounding of the coarser type."""
    coarse = max((own.dtype, copy.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = torch.finfo(coarse).eps
    return all(
        torch.allclose(x.to(coarse).float(), y.to(device=x.device, dtype=coarse).float(), rtol=tolerance, atol=1e-7)
        for x, y in zip(own.detach().split(_ROWS_AT_ONCE), copy.split(_ROWS_AT_ONCE), strict=True)
    )
