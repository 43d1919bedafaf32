"""adapter_config.json as AdapterHub's `adapters` 1.x writes it: one method, or a union of several.

Beside `config`, which describes the adapter, only its name, the base's `model_type` and the library's version matter.
Knows no tensors and no torch.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InvalidAdapter
from ..peft.fields import Fields
from ..peft.unsupported import unsupported
from .bottleneck_config import BottleneckConfig, parse_bottleneck
from .lora_config import LoraConfig, parse_lora
from .models import LAYOUTS, Layout
from .prefix_config import PrefixConfig, parse_prefix

Part = BottleneckConfig | LoraConfig | PrefixConfig

PARSERS: Mapping[str, Callable[[Mapping[str, Any], Layout], Part]] = {
    "bottleneck": parse_bottleneck,
    "lora": parse_lora,
    "mtl_lora": parse_lora,
    "prefix_tuning": parse_prefix,
}
_REFUSED: Mapping[str, str] = {
    "reft": "it changes tokens by their place from the start or the end of what one call of the model reads, which is "
    "another one in each step; train LoRA",
    "prompt_tuning": "the library has it for encoders only; train it with PEFT",
}
_MOST_PARTS = 16
_OLD_LORA = re.compile(r"adapters\.(0\.\d+|1\.0)\.|adapters\.1\.1\.0\.?(dev|a|b|rc)")


@dataclass(frozen=True)
class HubConfig:
    """An adapter of AdapterHub. name: its own, in its tensors' keys."""

    name: str
    model_type: str
    parts: tuple[Part, ...]

    @property
    def method(self) -> str:
        """Return the name of its method, as cards show it."""
        return self.parts[0].method if len(self.parts) == 1 else "UNION"


def is_adapterhub(raw: Mapping[str, Any]) -> bool:
    """Return whether AdapterHub's library has written a configuration."""
    return "peft_type" not in raw and "config" in raw and "model_type" in raw


def parse_adapterhub(raw: Mapping[str, Any]) -> HubConfig:
    """Parse and check the whole file. Raises InvalidAdapter, UnsupportedAdapter."""
    own = _as_object(raw["config"])
    model_type = Fields(raw).choice("model_type", "", tuple(LAYOUTS))
    if own.get("architecture") == "lora" and _OLD_LORA.match(str(raw.get("version"))):
        own = {**own, "alpha": own.get("r")}  # releases before 1.1 trained with this scale, whatever they wrote
    return HubConfig(_name(raw.get("name")), model_type, tuple(_parts(own, LAYOUTS[model_type])))


def _parts(own: Mapping[str, Any], layout: Layout) -> list[Part]:
    if own.get("architecture") != "union":
        return [_part(own, layout)]
    configs = own.get("configs")
    if not isinstance(configs, list) or not 0 < len(configs) <= _MOST_PARTS:
        raise InvalidAdapter(f"a union's configs must be a list of 1 to {_MOST_PARTS} objects", param="configs")
    return [_part(_as_object(config), layout) for config in configs]


def _part(own: Mapping[str, Any], layout: Layout) -> Part:
    name = own.get("architecture") or "bottleneck"
    if not isinstance(name, str) or name not in PARSERS:
        why = _REFUSED.get(name) if isinstance(name, str) else None
        served = f"of AdapterHub's methods {', '.join(PARSERS)} and unions of them are served; train with PEFT"
        raise unsupported(f"architecture={repr(name)[:80]}", why or served, param="architecture")
    return PARSERS[name](own, layout)


def _as_object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InvalidAdapter(f"config must be an object, not {repr(value)[:80]}", param="config")
    return value


def _name(name: object) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= 500:
        raise InvalidAdapter(f"name must be the adapter's name, not {repr(name)[:80]}", param="name")
    return name
