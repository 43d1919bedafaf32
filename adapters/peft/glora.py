"""GLoRA (Chavan et al. 2023, arXiv:2306.07967), whose five parts each have a form of their own.

    y = (W + W ⊙ A + B) x + b + b ⊙ D + E + W C

A, B: as `lora`, a Dense of W ⊙ A + B; as `vector` or `constant`, an OutputScale of A, and B as LowRank over the sum
    of x.
C, D, E: a Bias, where the base has one, less what the OutputScale adds to b: A does not scale it.
"""

import torch

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..primitives import Bias, Dense, LowRank, OutputScale, Primitive
from ..sites import Site
from .base import Base, NamedTensor
from .config import MethodConfig
from .linears import own_bias, require_room, sites_of
from .tensors import Checkpoint


def compile_glora(config: MethodConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile a GLORA adapter.

    Reads glora_A.Xd: (out, r), glora_A.Xu: (r, in), or glora_A.X; the same for B; C over in; D, E over out.
    Raises InvalidAdapter, UnsupportedAdapter, AdapterTooLarge.
    """
    form = config.fields.choice("config_A_B", "lora", ("lora", "vector", "constant", "none"))
    sites = sites_of(config, base)
    if form == "lora":
        require_room(sites, base)
    compiled = {site.name: _Site(site, config, checkpoint, base).primitives(form) for site in sites}
    if not any(compiled.values()):
        raise InvalidAdapter("its configuration trains nothing on this base", param="config_A_B")
    return Bypass(config.peft_type, {name: primitives for name, primitives in compiled.items() if primitives})


class _Site:
    """The parts of one module, read from the checkpoint in float32."""

    def __init__(self, site: Site, config: MethodConfig, checkpoint: Checkpoint, base: Base) -> None:
        self._site = site
        self._rank = config.fields.integer("r", 8, 1)
        self._c_form = config.fields.choice("config_C", "lora", ("lora", "vector", "none"))
        self._de_form = config.fields.choice("config_D_E", "constant", ("vector", "constant", "none"))
        self._checkpoint = checkpoint
        self._base = base

    def primitives(self, form: str) -> tuple[Primitive, ...]:
        site, dtype = self._site, self._base.dtype
        a, b = (self._part(part, form, (site.out_features, site.in_features)) for part in "AB")
        bias, change = own_bias(self._site, self._base), None
        own: tuple[Primitive, ...] = ()
        if form == "lora":
            own = (Dense(self._named(self._base.matrix(site.name, "GLORA") * a + b).converted(dtype)),)
        elif form != "none":
            scale = self._named(a.expand(site.out_features, 1).flatten()).converted(dtype)
            column = self._named(b.expand(site.out_features, 1)).converted(dtype)
            own = OutputScale(scale), LowRank(column.new_ones(1, site.in_features), column)
            change = None if bias is None else -scale.float() * bias
        change = self._changed_bias(bias, change)
        return own if change is None else (*own, Bias(self._named(change).converted(dtype)))

    def _changed_bias(self, bias: torch.Tensor | None, change: torch.Tensor | None) -> torch.Tensor | None:
        """Return the bias to add, with C, D and E; None if nothing changes.

        change: what A makes necessary. Without a bias in the base, PEFT has no C, D and E.
        """
        site = self._site
        c_form, de_form = ("none", "none") if bias is None else (self._c_form, self._de_form)
        c = self._part("C", c_form, (site.in_features, 1))
        d, e = (self._part(part, de_form, (site.out_features,)) for part in "DE")
        if bias is None or (change is None and c_form == de_form == "none"):
            return None
        result = bias * d + e + (bias.new_zeros(len(bias)) if change is None else change)
        if c_form == "none":
            return result
        return result + (self._base.matrix(site.name, "GLORA") @ c).flatten()

    def _part(self, part: str, form: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Return one part.

        shape: of the whole, of which a `vector` has one column; one number, or none, stands for all of it.
        """
        if form == "lora":
            down = self._take(f"{part}.Xd", (shape[0], self._rank))
            return down @ self._take(f"{part}.Xu", (self._rank, shape[1]))
        if form == "vector":
            return self._take(f"{part}.X", shape[:1] if len(shape) == 1 else (shape[0], 1))
        if form == "constant":
            return self._take(f"{part}.X", (1,))
        self._check_zeros(part, shape)
        return torch.zeros(1)

    def _take(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        named = self._checkpoint.take(f"{self._site.name}.glora_{name}")
        return named.require_shape(shape, f"{self._site.name} takes").converted(torch.float32)

    def _check_zeros(self, part: str, shape: tuple[int, ...]) -> None:
        """Check the zeros that PEFT saves in place of a part that is not trained. Raises InvalidAdapter."""
        zeros = self._checkpoint.find(f"{self._site.name}.glora_{part}.zeros")
        if zeros is not None and zeros.require_shape(shape, f"{self._site.name} takes").tensor.count_nonzero():
            raise InvalidAdapter(f"{zeros.key} holds other numbers than zeros", param="files")

    def _named(self, tensor: torch.Tensor) -> NamedTensor:
        return NamedTensor(f"what glora makes of {self._site.name}", tensor)
