"""AdapterHub's LoRA and what it makes of it, compiled to low-rank factors and scales of the output.

    LORA       y += s B (A x), s = alpha / r
    VERA       y += s (V_B B) (V_D A) x: B and A of all modules, V_B and V_D whole matrices, as that library trains them
    MTL_LORA   y += s Σ_i w_i B_i diag(d) A x, w = softmax(weights / sharpness)
    DoRA       y = m / ‖W + B A‖ ⊙ (W x + bias + s B A x): the norms without s, the bias scaled too
    IA3        y = alpha · l ⊙ (W x + bias)

A module that is query, key and value in one (GPT-2's) has the factors of those that are adapted, one after the other.
"""

from collections.abc import Callable, Iterator, Mapping

import torch

from ..errors import InvalidAdapter
from ..peft.base import Base, NamedTensor
from ..peft.factored import low_rank
from ..peft.tensors import Checkpoint
from ..peft.unsupported import unsupported
from ..primitives import OutputScale, Primitive
from ..sites import Site, SiteKind
from .config import HubConfig
from .lora_config import LoraConfig, LoraForm
from .models import LAYOUTS, MERGED, Layout
from .places import Compiled, numbered_layers, site_of

Factors = tuple[torch.Tensor, torch.Tensor]
"""A, (rank, in_features), and B, (out_features, rank), in float32; the scaling is in neither."""


class _Module:
    """One adapted module: its site, and its tensors in the checkpoint by their last names."""

    def __init__(self, part: LoraConfig, hub: HubConfig, checkpoint: Checkpoint, site: Site) -> None:
        self.site, self.part, self._checkpoint = site, part, checkpoint
        self._own = f"{site.name}.loras.{hub.name}"
        self._shared = f"{LAYOUTS[hub.model_type].layers.rpartition('.')[0]}.shared_parameters.{hub.name}"

    def take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor of the module in float32. Raises InvalidAdapter."""
        return self._take(f"{self._own}.{name}", shape)

    def take_shared(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return a tensor that all modules share in float32. Raises InvalidAdapter."""
        return self._take(f"{self._shared}.{name}", shape)

    def _take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        why = f"{self.part.method} of r={self.part.rank} at {self.site.name} takes"
        return self._checkpoint.take(name).require_shape(shape, why).weights()


def compile_lora(part: LoraConfig, hub: HubConfig, checkpoint: Checkpoint, base: Base) -> Compiled:
    """Compile a LoRA of any form. Raises AdapterError."""
    layout = LAYOUTS[hub.model_type]
    sites = {
        module.site.name: _primitives(module, layout.linears.attention.get(MERGED), base)
        for module in _modules(part, hub, layout, checkpoint, base)
    }
    if not sites:
        raise InvalidAdapter(
            "the adapter is on no module: selfattn_lora, intermediate_lora, output_lora, leave_out", param="config"
        )
    return Compiled(sites, exclusive=("DoRA",) if part.dora else ())


def _modules(part: LoraConfig, hub: HubConfig, layout: Layout, checkpoint: Checkpoint, base: Base) -> Iterator[_Module]:
    for _, layer in numbered_layers(layout, base, part.leave_out):
        for name in part.modules:
            yield _Module(part, hub, checkpoint, site_of(base, f"{layer}.{name}", SiteKind.LINEAR))


def _primitives(module: _Module, merged: str | None, base: Base) -> tuple[Primitive, ...]:
    part, site = module.part, module.site
    is_merged = merged is not None and site.name.endswith(f".{merged}")
    if part.form is LoraForm.SCALE:
        return (_scale(module, is_merged, base),)
    if (is_merged and part.form is not LoraForm.PLAIN) or (part.dora and (is_merged or site.transposed)):
        raise unsupported(
            f"{'DoRA' if part.dora else part.method} on {site.name}",
            "AdapterHub's own library cannot run it there; train LoRA",
            param="config",
        )
    a, b = _merged(module) if is_merged else FACTORS[part.form](module)
    scaling = part.alpha / part.rank
    if not part.dora:
        return (low_rank(site.name, a, scaling * b, base),)
    scale = module.take("m.weight", (site.out_features, 1)).flatten() / _norms(site, a, b, base)
    return (_output_scale(site, scale, base), low_rank(site.name, a, scaling * scale[:, None] * b, base))


def _plain(module: _Module) -> Factors:
    rank, site = module.part.rank, module.site
    return module.take("lora_A", (rank, site.in_features)), module.take("lora_B", (site.out_features, rank))


def _vera(module: _Module) -> Factors:
    rank, site = module.part.rank, module.site
    a = module.take_shared("lora_A", (rank, site.in_features))
    b = module.take_shared("lora_B", (site.out_features, rank))
    return module.take("vera_D", (rank, rank)) @ a, module.take("vera_B", (site.out_features,) * 2) @ b


def _task(module: _Module) -> Factors:
    rank, site, part = module.part.rank, module.site, module.part
    a = module.take("lora_A", (rank, site.in_features))
    b = module.take("lora_B", (part.num_up, site.out_features, rank))
    weights = (module.take("weights", (part.num_up,)) / part.sharpness).softmax(0)
    return module.take("task_specific.values", (rank,))[:, None] * a, torch.einsum("n,nor->or", weights, b)


FACTORS: Mapping[LoraForm, Callable[[_Module], Factors]] = {
    LoraForm.PLAIN: _plain,
    LoraForm.SHARED: _vera,
    LoraForm.TASK: _task,
}


def _merged(module: _Module) -> Factors:
    """Return the factors of the matrices that are adapted, each at its third of the outputs."""
    rank, site, matrices = module.part.rank, module.site, module.part.matrices
    third, count = site.out_features // len(MERGED), len(matrices)
    a = module.take("lora_A", (rank * count, site.in_features))
    b = module.take("lora_B", (third * count, rank))
    placed = torch.zeros(site.out_features, rank * count)
    for i, matrix in enumerate(matrices):
        row = MERGED.index(matrix) * third
        placed[row : row + third, i * rank : (i + 1) * rank] = b[i * third : (i + 1) * third]
    return a, placed


def _scale(module: _Module, is_merged: bool, base: Base) -> OutputScale:
    """Return (IA)³'s scale. Of a merged module the outputs that are not adapted are multiplied by alpha too."""
    site, matrices = module.site, module.part.matrices
    if not is_merged:
        return _output_scale(site, module.part.alpha * module.take("lora_B", (site.out_features, 1)).flatten(), base)
    third = site.out_features // len(MERGED)
    scale, own = torch.ones(len(MERGED), third), module.take("lora_B", (third * len(matrices), 1))
    scale[[MERGED.index(matrix) for matrix in matrices]] = own.view(len(matrices), third)
    return _output_scale(site, module.part.alpha * scale.flatten(), base)


def _output_scale(site: Site, scale: torch.Tensor, base: Base) -> OutputScale:
    return OutputScale(NamedTensor(f"the scale of {site.name}", scale - 1).converted(base.dtype))


def _norms(site: Site, a: torch.Tensor, b: torch.Tensor, base: Base) -> torch.Tensor:
    """Return the norms of the rows of W + B A."""
    norms: torch.Tensor = torch.linalg.norm(base.matrix(site.name, "DoRA", rounded_inputs=True) + b @ a, dim=1)
    return norms
