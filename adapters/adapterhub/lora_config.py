"""The configuration of a LoRA, and of what AdapterHub's library makes of it: DoRA, VeRA, MTL-LoRA, (IA)³.

Knows no tensors and no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..errors import InvalidAdapter
from ..peft.fields import Fields
from ..peft.unsupported import refuse_fields, unsupported
from .models import Layout

GATED = "the gate is an average over the sequence, so the answer would depend on later tokens; train without"
_READ = "architecture selfattn_lora intermediate_lora output_lora leave_out r alpha attn_matrices composition_mode "
_READ += "use_dora vera_d vera_b n_up_projection task_specific_matrix_type weights_sharpness"
_KNOWN = frozenset(f"{_READ} dropout init_weights init_weights_seed dtype".split())


class LoraForm(StrEnum):
    """What the tensors at a module are; the value is the method's name."""

    PLAIN = "LORA"
    SHARED = "VERA"  # factors that all modules share, between two trained matrices
    TASK = "MTL_LORA"  # several B, weighted, and a diagonal
    SCALE = "IA3"


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA of AdapterHub. modules: names in a layer. matrices: which of q, k and v it is on, where they are one."""

    form: LoraForm
    modules: tuple[str, ...]
    matrices: str
    rank: int
    alpha: float
    dora: bool
    num_up: int
    sharpness: float
    leave_out: tuple[int, ...]

    @property
    def method(self) -> str:
        return self.form.value


def parse_lora(own: Mapping[str, Any], layout: Layout) -> LoraConfig:
    """Parse a LoRA's configuration for a kind of model. Raises InvalidAdapter, UnsupportedAdapter."""
    refuse_fields(own, {"use_gating": GATED}, _KNOWN)
    fields = Fields(own)
    form, matrices = _form(fields), "".join(m for m in "qkv" if m in fields.strings("attn_matrices"))
    return LoraConfig(
        form=form,
        modules=tuple(_modules(fields, matrices, layout)),
        matrices=matrices,
        rank=fields.integer("r", 8, 1),
        alpha=fields.number("alpha", 8),
        dora=fields.boolean("use_dora") and form is not LoraForm.SCALE,
        num_up=fields.integer("n_up_projection", 1, 1),
        sharpness=_sharpness(fields),
        leave_out=fields.integers("leave_out"),
    )


def _form(fields: Fields) -> LoraForm:
    """Return the form, by the library's own rules: VeRA is where one of its two numbers is there, as a float."""
    if fields.choice("composition_mode", "add", ("add", "scale")) == "scale":
        if fields.integer("r", 8, 1) > 1:
            raise InvalidAdapter("composition_mode='scale' goes with r=1 only", param="r")
        return LoraForm.SCALE
    if any(isinstance(fields.value(name), float) for name in ("vera_d", "vera_b")):
        return LoraForm.SHARED
    if fields.value("architecture") != "mtl_lora":
        return LoraForm.PLAIN
    if fields.value("task_specific_matrix_type") == "linear":
        raise unsupported(
            "task_specific_matrix_type='linear'",
            "AdapterHub's own library cannot make one",
            param="task_specific_matrix_type",
        )
    return LoraForm.TASK


def _modules(fields: Fields, matrices: str, layout: Layout) -> list[str]:
    linears = layout.linears
    wanted = [module for letters, module in linears.attention.items() if set(letters) & set(matrices)]
    places = (
        (fields.boolean("intermediate_lora"), linears.intermediate),
        (fields.boolean("output_lora"), linears.output),
    )
    return (wanted if fields.boolean("selfattn_lora", True) else []) + [module for on, module in places if on]


def _sharpness(fields: Fields) -> float:
    sharpness = fields.number("weights_sharpness", 0.05)
    if sharpness == 0:
        raise InvalidAdapter("weights_sharpness must not be 0", param="weights_sharpness")
    return sharpness
