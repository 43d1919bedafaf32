"""The sampling parameters that a checkpoint's `generation_config.json` asks for: what requests leave out is theirs.

vLLM's and SGLang's rule: of the values that are not transformers' own defaults, those of six names are taken, whether
or not the file says `do_sample`. A repetition penalty so counts in greedy decoding, as in transformers' `generate`.
"""

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from ...model_files import model_files

logger = logging.getLogger(__name__)

OFF = ("none", "vllm")
Check = Callable[[float], bool]

NAMES: Mapping[str, tuple[str, type[int] | type[float], Check]] = {
    "temperature": ("temperature", float, lambda value: 0 <= value <= 100),
    "top_p": ("top_p", float, lambda value: 0 < value <= 1),
    "top_k": ("top_k", int, lambda value: value >= 0),
    "min_p": ("min_p", float, lambda value: 0 <= value <= 1),
    "repetition_penalty": ("repetition_penalty", float, lambda value: 0 < value <= 100),
    "max_new_tokens": ("max_tokens", int, lambda value: value >= 1),
}
"""A name in the file to that in `SamplingParams`, its type, and whether a value can be served."""


def sampling_defaults(model: str, source: str, override: str | None, trust_remote_code: bool) -> dict[str, int | float]:
    """Return parameters by their names in `SamplingParams`, with what is set only.

    source: `auto` for the model's own file, `none` or `vllm` for no file, or a folder that has one. override: a JSON
    object whose values win. Values that cannot be served are left out with a warning.
    """
    wanted = {} if source in OFF else _read(model if source == "auto" else source, trust_remote_code)
    wanted |= json.loads(override or "{}")
    found = {own: kind(wanted[name]) for name, (own, kind, fits) in NAMES.items() if _is_served(wanted, name, fits)}
    if found:
        logger.info("sampling defaults where a request leaves them out (--generation-config): %s", found)
    return found


def _read(source: str, trust_remote_code: bool) -> dict[str, Any]:
    try:
        own = GenerationConfig.from_pretrained(model_files(source).place, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, TypeError) as error:
        logger.debug("no generation_config.json in %s: %s", source, error)
        return {}
    found: dict[str, Any] = own.to_diff_dict()
    return found


def _is_served(wanted: Mapping[str, Any], name: str, fits: Check) -> bool:
    value = wanted.get(name)
    if value is None:
        return False
    served = isinstance(value, int | float) and not isinstance(value, bool) and fits(value)
    if not served:
        logger.warning("the generation configuration's %s of %r cannot be served, and is left out", name, value)
    return served
