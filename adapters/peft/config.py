"""adapter_config.json parsed and checked, as every PEFT up to 0.21 writes it.

Every field is known, refused by name, or without effect at inference; one that `methods` does not list is ignored, as
PEFT ignores it, and noted. Knows no tensors and no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapterhub.config import HubConfig, is_adapterhub, parse_adapterhub
from ..errors import InvalidAdapter
from ..files import CONFIG, read_raw_config
from .fields import Fields
from .listing import listed
from .methods import METHODS, Method
from .unsupported import refuse_fields, refuse_lora_values, refuse_type
from .variant import LoraVariant, parse_variant

ALL_LINEAR = "all-linear"
MAX_SAVED_MODULES = 1024


@dataclass(frozen=True)
class Targets:
    """The modules that an adapter is on, as all tuners of PEFT configure them.

    modules: names or ends of names; a string is a regular expression on the whole name, or `all-linear`.
    exclude: the same, for modules to leave out. layers: indices of layers; empty is all. layers_pattern: regular
    expressions for the part of the name before the index; empty is anything. saved: `modules_to_save`, which no method
    is on.
    """

    modules: tuple[str, ...] | str
    exclude: tuple[str, ...] | str = ()
    layers: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    saved: tuple[str, ...] = ()

    @property
    def all_linear(self) -> bool:
        """Return whether the modules are `all-linear`."""
        return isinstance(self.modules, str) and self.modules.lower() == ALL_LINEAR


@dataclass(frozen=True)
class AuxiliaryConfig:
    """Parts that any method may train beside its own tensors.

    modules: ends of names of modules that are saved whole. tokens: end of a module's name to the ids whose rows are
    replaced; the empty name is the input embedding. bias: which of the base's biases were trained, `none`, `all` or
    `<method>_only`. tie: whether settings of the embedding hold for a tied head too.
    """

    modules: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bias: str = "none"
    tie: bool = False


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA configuration.

    ranks, alphas: regular expression on the end of a module's name, to what replaces r and alpha there.
    tie: whether an adapter on the embedding is on a tied head too (`ensure_weight_tying`).
    parameters: ends of names of experts' stacked parameters; with them, `targets` may name no module.
    """

    targets: Targets
    r: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    use_rslora: bool = False
    tie: bool = False
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    variant: LoraVariant = field(default_factory=LoraVariant)
    peft_type: str = "LORA"
    parameters: tuple[str, ...] = ()

    def scaling(self, rank: int, alpha: float) -> float:
        """Return the factor of B A at a module with this rank and alpha."""
        return alpha / (rank**0.5 if self.use_rslora else rank)


@dataclass(frozen=True)
class MethodConfig:
    """The configuration of any other method. targets: None for methods that are on no module.

    fields: read by the method's compiler; `METHODS` says which fields those are.
    """

    peft_type: str
    targets: Targets | None
    fields: Fields
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()


@dataclass(frozen=True)
class AdapterHubConfig:
    """The configuration of an adapter that AdapterHub's library saved, which is no method of PEFT."""

    hub: HubConfig
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()

    @property
    def peft_type(self) -> str:
        """Return the name of the method, which is PEFT's where PEFT has it."""
        return self.hub.method


AnyConfig = LoraConfig | MethodConfig | AdapterHubConfig


def read_config(folder: Path) -> AnyConfig:
    """Read and check the configuration of the adapter in a folder. Raises AdapterError, OSError."""
    return parse_config(read_raw_config(folder))


def parse_config(raw: Mapping[str, Any]) -> AnyConfig:
    """Check a configuration. Raises InvalidAdapter, UnsupportedAdapter."""
    if is_adapterhub(raw):
        return AdapterHubConfig(parse_adapterhub(raw))
    if "peft_type" not in raw:
        raise InvalidAdapter(
            f"{CONFIG} has no peft_type; is it the configuration of a PEFT adapter?", param="peft_type"
        )
    peft_type = raw["peft_type"]
    refuse_type(peft_type, METHODS.keys())
    method = METHODS[peft_type]
    refuse_fields(raw, method.refused)
    return parse_lora(raw) if peft_type == "LORA" else _parse_method(peft_type, method, raw)


def notes_on_fields(raw: Mapping[str, Any]) -> list[str]:
    """Say which fields of a parsed configuration are set and unknown: they have no effect, as in PEFT."""
    if is_adapterhub(raw):
        return []
    method = METHODS[raw["peft_type"]]
    unknown = [name for name, value in raw.items() if value and name not in method.known | method.refused.keys()]
    what = "adapter_config.json sets fields that PEFT's release 0.21 does not have, and that are ignored"
    return [f"{what}: {listed(unknown)}"] if unknown else []


def _parse_method(peft_type: str, method: Method, raw: Mapping[str, Any]) -> MethodConfig:
    fields = Fields(raw)
    if not method.has_targets:
        return MethodConfig(peft_type, None, fields)
    return MethodConfig(peft_type, parse_targets(fields), fields, parse_auxiliary(fields))


def parse_targets(fields: Fields) -> Targets:
    """Parse the fields that say which modules an adapter is on. Raises InvalidAdapter."""
    modules = fields.names_or_pattern("target_modules")
    if not modules:
        raise InvalidAdapter("target_modules is missing or empty: the adapter is on no module", param="target_modules")
    if isinstance(modules, str):
        for name in ("layers_to_transform", "layers_pattern"):
            if fields.value(name) is not None:
                raise InvalidAdapter(f"{name} does not go together with a string as target_modules", param=name)
    return Targets(
        modules,
        fields.names_or_pattern("exclude_modules"),
        fields.integers("layers_to_transform"),
        tuple(pattern for pattern in fields.strings("layers_pattern") if pattern),
        _saved_modules(fields),
    )


def parse_auxiliary(fields: Fields) -> AuxiliaryConfig:
    """Parse the fields of what is trained beside a method. Raises InvalidAdapter."""
    bias = fields.value("bias") or "none"
    if bias not in ("none", "all") and not (isinstance(bias, str) and bias.endswith("_only")):
        raise InvalidAdapter(f"bias must be none, all or ..._only, not {repr(bias)[:40]}", param="bias")
    tokens = fields.ids_by_name("trainable_token_indices")
    return AuxiliaryConfig(_saved_modules(fields), tokens, bias, fields.boolean("ensure_weight_tying"))


def _saved_modules(fields: Fields) -> tuple[str, ...]:
    names = fields.value("modules_to_save") or []
    named = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    if not named or len(names) > MAX_SAVED_MODULES:
        raise InvalidAdapter(
            f"modules_to_save must be a list of at most {MAX_SAVED_MODULES} names, not {repr(names)[:80]}",
            param="modules_to_save",
        )
    return fields.strings("modules_to_save")


def parse_lora(raw: Mapping[str, Any]) -> LoraConfig:
    """Parse a LoRA configuration whose fields are all known. Raises InvalidAdapter, UnsupportedAdapter."""
    refuse_lora_values(raw)
    fields = Fields(raw)
    parameters = tuple(name for name in fields.strings("target_parameters") if name)
    return LoraConfig(
        targets=Targets(()) if parameters and not raw.get("target_modules") else parse_targets(fields),
        r=fields.integer("r", 8, 1),
        alpha=fields.number("lora_alpha", 8),
        ranks=fields.integer_map("rank_pattern", 1),
        alphas=fields.number_map("alpha_pattern"),
        use_rslora=fields.boolean("use_rslora"),
        tie=fields.boolean("ensure_weight_tying"),
        auxiliary=parse_auxiliary(fields),
        variant=parse_variant(fields),
        parameters=parameters,
    )
