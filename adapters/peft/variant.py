"""The variant of LoRA that a configuration asks for. No torch.

PEFT has one variant in a configuration, with two exceptions: DoRA and block-diagonal factors may start from the base's
weight (PiSSA, OLoRA).
"""

from dataclasses import dataclass
from typing import Any

from ..errors import InvalidAdapter
from .fields import Fields

# Field to the name of the tensors that only training uses.
_TRAINING_ONLY = {"velora_config": "lora_velora_embed", "monteclora_config": "lora_monteclora_sampler"}
_FORMS = ("use_dora", "use_bdlora", "use_qalora", "kasa_config", "alora_invocation_tokens", "arrow_config")


@dataclass(frozen=True)
class BlockDiagonal:
    """BD-LoRA. a, b: parts of the names of modules whose factor A or B is block-diagonal, of `blocks` blocks.

    strict: each module must be one of them.
    """

    blocks: int
    a: tuple[str, ...]
    b: tuple[str, ...]
    strict: bool

    def factor(self, module: str) -> str:
        """Return which factor of a module is block-diagonal: `a`, `b` or, empty, none. Raises InvalidAdapter."""
        found = [name for name, parts in (("a", self.a), ("b", self.b)) if any(part in module for part in parts)]
        if len(found) == 2 or (self.strict and not found):
            many = "both its factors are" if found else "neither factor is"
            raise InvalidAdapter(f"use_bdlora says of {module} that {many} block-diagonal", param="use_bdlora")
        return "".join(found)


@dataclass(frozen=True)
class Arrow:
    """The settings of a router between experts.

    tasks: names of the experts between which tokens are routed. general: names of those whose mean is subtracted first.
    seed: of the search for an expert's prototype; PEFT without a seed takes a random one, and here it is 0.
    """

    tasks: tuple[str, ...]
    general: tuple[str, ...]
    top_k: int
    temperature: float
    seed: int


@dataclass(frozen=True)
class LoraVariant:
    """A variant of LoRA; the defaults are plain LoRA.

    start: `pissa` or `olora`, where the initial factors were taken from the base's weight. bias: whether B has a bias.
    pool: the group size of QALoRA, 0 for none. invocation: aLoRA's token ids. idle: the name of tensors that only
    training uses.
    """

    start: str = ""
    dora: bool = False
    bias: bool = False
    kasa: bool = False
    blocks: BlockDiagonal | None = None
    pool: int = 0
    invocation: tuple[int, ...] = ()
    idle: str = ""
    arrow: Arrow | None = None

    @property
    def linear_only(self) -> bool:
        """Return whether PEFT refuses it on embeddings. Of QALoRA it makes a plain LoRA there."""
        forms = (self.bias, self.kasa, self.blocks, self.invocation, self.idle, self.arrow)
        return any(bool(form) for form in forms)


def parse_variant(fields: Fields) -> LoraVariant:
    """Parse the fields that ask for a variant. Raises InvalidAdapter for two that do not go together."""
    set_ = [name for name in (*_FORMS, *_TRAINING_ONLY) if fields.value(name)]
    start = str(fields.value("init_lora_weights")).lower()
    start = start if start in ("pissa", "olora") else ""
    bias = fields.boolean("lora_bias")
    forms = [*set_, *(["lora_bias"] if bias else [])]
    if start and not set(forms) <= {"use_dora", "use_bdlora"}:
        forms.append("init_lora_weights")
    if len(forms) > 1:
        raise InvalidAdapter(f"PEFT does not put {' and '.join(forms)} together", param=forms[0])
    return LoraVariant(
        start=start,
        dora=fields.boolean("use_dora"),
        bias=bias,
        kasa=bool(fields.value("kasa_config")),
        blocks=_blocks(fields.value("use_bdlora")),
        pool=fields.integer("qalora_group_size", 16, 1) if fields.boolean("use_qalora") else 0,
        invocation=fields.integers("alora_invocation_tokens"),
        idle=next((tensors for name, tensors in _TRAINING_ONLY.items() if fields.value(name)), ""),
        arrow=_arrow(fields.value("arrow_config")),
    )


def _arrow(value: Any) -> Arrow | None:
    if not value:
        return None
    if not isinstance(value, dict):
        raise InvalidAdapter(f"arrow_config must be an object, not {repr(value)[:80]}", param="arrow_config")
    fields = Fields(value)
    tasks, general = fields.strings("task_adapter_names"), fields.strings("gks_adapter_names")
    top_k, temperature = fields.integer("top_k", 3, 1), fields.number("router_temperature", 1.0)
    if not 0 < top_k <= len(tasks):
        raise InvalidAdapter(f"arrow_config has top_k {top_k} of {len(tasks)} task_adapter_names", param="arrow_config")
    if temperature <= 0:
        raise InvalidAdapter("router_temperature must be greater than 0", param="arrow_config")
    if fields.boolean("use_gks") != bool(general):
        raise InvalidAdapter("use_gks goes with gks_adapter_names, each of which wants the other", param="arrow_config")
    return Arrow(tasks, general, top_k, temperature, fields.integer("rng_seed", 0, 0))


def _blocks(value: Any) -> BlockDiagonal | None:
    if not value:
        return None
    if not isinstance(value, dict):
        raise InvalidAdapter(f"use_bdlora must be an object, not {repr(value)[:80]}", param="use_bdlora")
    fields = Fields({"match_strict": True, **value})
    return BlockDiagonal(
        fields.integer("nblocks", 1, 1),
        fields.strings("target_modules_bd_a"),
        fields.strings("target_modules_bd_b"),
        fields.boolean("match_strict"),
    )
