"""The keys of a LoRA checkpoint's tensors: which module, which factor. Knows no shapes and no torch."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from ..errors import InvalidAdapter
from ..sites import Site, SiteKind
from .listing import listed

PREFIX = "base_model.model."
"""What PEFT puts before names of the base's modules: its own model, around a method's, around the base."""
PREFIX_OF_PROMPTS = "base_model."
"""The same of methods that put virtual tokens before the prompt: no model of theirs is between."""

# The adapter's name is in a key only where the checkpoint was not written by PEFT's own save.
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?:"
    r"(?P<weight>lora_[AB])(?:\.(?P<adapter>[^.]+))?\.weight|"
    r"(?P<bias>lora_B)(?:\.(?P<adapter_of_bias>[^.]+))?\.bias|"
    r"(?P<plain>lora_embedding_[AB]|lora_diag)(?:\.(?P<adapter_of_plain>[^.]+))?|"
    r"(?P<magnitude>lora_magnitude_vector)(?:\.(?!weight$)(?P<adapter_of_magnitude>[^.]+))?(?:\.weight)?)"
)
_KINDS = ("weight", "bias", "plain", "magnitude")


@dataclass
class Keys:
    """The keys of a checkpoint. factors: module to factor (`lora_A`) to key. unknown: all other keys."""

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


def sort_keys(names: Iterable[str]) -> Keys:
    """Sort keys by module and factor. Raises InvalidAdapter if two mean the same tensor, or for several adapters."""
    keys = Keys()
    adapters: set[str | None] = set()
    for key in names:
        name = key.removeprefix(PREFIX)
        if match := _FACTOR.fullmatch(name):
            found = {group: text for group, text in match.groupdict().items() if text}
            factor = next(found[kind] for kind in _KINDS if kind in found) + (".bias" if "bias" in found else "")
            adapters.add(next((text for group, text in found.items() if group.startswith("adapter")), None))
            _put(keys.factors.setdefault(match["module"], {}), factor, key)
        else:
            keys.unknown.append(key)
    if len(adapters) > 1:
        raise InvalidAdapter(
            f"the checkpoint holds several adapters: {listed(sorted(map(str, adapters)))}", param="files"
        )
    return keys


def factors_of(site: Site) -> tuple[str, str]:
    """Return PEFT's names of the two factors at a site of this kind."""
    if site.kind is SiteKind.EMBEDDING:
        return "lora_embedding_A", "lora_embedding_B"
    return "lora_A", "lora_B"


def written_key(module: str, factor: str) -> str:
    """Return the key under which PEFT saves a factor."""
    return f"{PREFIX}{module}.{factor}" + (".weight" if factor in ("lora_A", "lora_B") else "")


def _put(known: dict[str, str], name: str, key: str) -> None:
    if name in known:
        raise InvalidAdapter(f"{known[name]} and {key} are the same tensor", param="files")
    known[name] = key


def check_complete(keys: Keys, wanted: Mapping[str, tuple[str, ...]], optional: Container[str | None] = ()) -> None:
    """Check that a checkpoint holds the factors of all modules, and no others.

    wanted: module to its factors; `optional` modules may be missing as a whole.
    Raises InvalidAdapter naming what is missing or left over.
    """
    left = keys.unknown + [
        key
        for module, found in keys.factors.items()
        for name, key in found.items()
        if name not in wanted.get(module, ())
    ]
    if left:
        raise InvalidAdapter(f"tensors that the configuration does not put on this base: {listed(left)}", param="files")
    missing = [
        written_key(module, factor)
        for module, factors in wanted.items()
        for factor in factors
        if not (module in optional and module not in keys.factors) and factor not in keys.factors.get(module, {})
    ]
    if missing:
        raise InvalidAdapter(f"the configuration wants tensors that are missing: {listed(missing)}", param="files")
