"""From a configuration of AdapterHub's library and its checkpoint to a Bypass."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..bypass import Bypass
from ..errors import InvalidAdapter
from ..peft.base import Base
from ..peft.config import AdapterHubConfig
from ..peft.tensors import Checkpoint
from ..peft.unsupported import unsupported
from ..primitives import Bottleneck, Primitive
from .bottleneck import compile_bottleneck
from .bottleneck_config import BottleneckConfig
from .config import HubConfig
from .lora import compile_lora
from .lora_config import LoraConfig
from .places import Compiled
from .prefix import compile_prefix
from .prefix_config import PrefixConfig

COMPILERS: Mapping[type, Callable[[Any, HubConfig, Checkpoint, Base], Compiled]] = {
    BottleneckConfig: compile_bottleneck,
    LoraConfig: compile_lora,
    PrefixConfig: compile_prefix,
}


def compile_adapterhub(config: AdapterHubConfig, checkpoint: Checkpoint, base: Base) -> Bypass:
    """Compile an adapter of any method or union of AdapterHub. Raises AdapterError."""
    parts = [(part, COMPILERS[type(part)](part, config.hub, checkpoint, base)) for part in config.hub.parts]
    _check_apart((type(part), compiled) for part, compiled in parts)
    sites: dict[str, tuple[Primitive, ...]] = {}
    for _, compiled in parts:
        for name, primitives in compiled.sites.items():
            sites[name] = _together(name, (*sites.get(name, ()), *primitives))
    return Bypass(
        config.peft_type,
        sites,
        prefix=next((compiled.prefix for _, compiled in parts if compiled.prefix is not None), None),
        exclusive=tuple(dict.fromkeys(name for _, compiled in parts for name in compiled.exclusive)),
    )


def _check_apart(parts: Iterable[tuple[type, Compiled]]) -> None:
    """Raise InvalidAdapter for two parts of one method at one place, which the library does not make."""
    seen: set[tuple[type, str]] = set()
    for kind, compiled in parts:
        places = {(kind, name) for name in (*compiled.sites, *(["the cache"] if compiled.prefix else []))}
        if both := seen & places:
            raise InvalidAdapter(f"two parts of the union are on {min(name for _, name in both)}", param="configs")
        seen |= places


def _together(name: str, primitives: tuple[Primitive, ...]) -> tuple[Primitive, ...]:
    """Return the primitives of several parts at one site. Raises UnsupportedAdapter where one would read the others."""
    if len(primitives) > 1 and any(isinstance(primitive, Bottleneck) for primitive in primitives):
        raise unsupported(
            f"a union of a bottleneck and a LoRA on {name}",
            "the bottleneck reads the output that the LoRA has changed; train with ParBnConfig, or put them apart",
            param="configs",
        )
    return primitives
