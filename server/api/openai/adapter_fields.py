"""Fields by which other servers name the adapter of a request. Knows bodies as JSON has them, and no adapter.

`model` and `adapters` are ours. Another field that plainly names one adapter is as good as `model`; any other that
speaks of adapters is refused by name, never ignored: the base would answer what was not asked of it. A field that is
null or empty is left out.
"""

import re
from collections.abc import Container, Iterator, Mapping
from typing import Any, NamedTuple

from ..http.errors import ApiError, bad_request

OURS = ("model", "adapters")  # at the top of a body, where its schema reads them
NAMING = frozenset(
    {
        *("adapter_id", "adapter", "adapter_name", "adapter_names"),  # LoRAX and TGI; PEFT's, one for each prompt
        *("lora_path", "lora_id", "lora_name", "lora", "lora_adapter"),  # SGLang's, also one for each prompt; others'
        *("lora_request", "active_adapter", "peft"),  # vLLM's object, which has the name in it; PEFT's
        "model",  # inside another field
    }
)
UNREAD = frozenset({"adapters", "adapter_source"})  # the second says where LoRAX gets an adapter from: ours are here
INSIDE = ("parameters", "extra_body")  # where LoRAX and TGI have theirs, and where a client's argument may be put

_MIXTURE = 'adapters: [{"name": "a", "weight": 0.7}]'
_WEIGHT = f"give a weight in {_MIXTURE}"
_REASON = f"name an adapter as model, or several as {_MIXTURE}"
REASONS: Mapping[str, str] = {
    "adapters": "it belongs at the top of the body",
    "lora": f"an adapter is named here, not numbered, as in {_MIXTURE}",  # llama.cpp's list of ids and scales
    "merged_adapters": f"a mixture is the exact weighted sum here, as in {_MIXTURE}",  # LoRAX's strategies
    **dict.fromkeys(("lora_weight", "lora_weights", "lora_scale", "lora_scales"), _WEIGHT),
    **dict.fromkeys(("adapter_weight", "adapter_weights", "adapter_scale", "adapter_scales"), _WEIGHT),
}

# Words of a name, whatever its style: `lora_path`, `loraPath`, `baseLora`; not `exploration`.
_SPEAKS_OF_ADAPTERS = re.compile(
    r"(?:(?<![a-zA-Z])(?:q?lora|adapter|peft)|Q?Lo[rR][aA]|Q?LORA|A(?:dapter|DAPTER)|P(?:eft|EFT))s?(?![a-z])"
)
_AT_LEAST = re.compile("|".join(("lora", "adapter", "peft", *INSIDE)), re.IGNORECASE)
SHOWN = 140  # characters of what a client has sent, in a message


class Named(NamedTuple):
    """An adapter's name, and the field that gave it."""

    field: str
    name: str


def find_named(body: Mapping[str, Any]) -> Named | None:
    """Return the adapter that a body names beside `model`. Raises ApiError 400 for a field that says anything else."""
    if not _AT_LEAST.search(" ".join(body)):
        return None  # as most bodies, in a microsecond
    found: Named | None = None
    for field, value in _fields(body):
        if (name := _name(field[:SHOWN], value)) is None:
            continue
        if found is not None and found.name != name:
            raise _conflict(found, f"{field} is {name[:SHOWN]!r}")
        found = found or Named(field, name)
    return found


def which_model(model: str | None, several: bool, named: Named | None, neutral: Container[str | None]) -> str | None:
    """Return the one name that `model` and another field give. Raises ApiError 400 where they differ.

    several: whether `adapters` is there. neutral: what `model` may be beside another field.
    """
    if named is None:
        return model
    if several:
        raise _conflict(named, "adapters is a mixture")
    if model != named.name and model not in neutral:
        raise _conflict(named, f"model is {model!r}")
    return named.name


def _conflict(named: Named, other: str) -> ApiError:
    return bad_request(f"{named.field} is {named.name[:SHOWN]!r}, and {other}: give one of them.", named.field)


def _fields(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields that speak of adapters and are not neutral: the place where each stands, and its value."""
    for field, value in body.items():
        if field not in UNREAD and _SPEAKS_OF_ADAPTERS.search(field) and not _is_neutral(value):
            yield field, value
    for place in INSIDE:
        inner = body.get(place)
        if isinstance(inner, Mapping):
            ours = {field: inner[field] for field in OURS if not _is_neutral(inner.get(field))}
            yield from ((f"{place}.{field}", value) for field, value in (*ours.items(), *_fields(inner)))


def _is_neutral(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(one is None or one is False or one in ("", {}) for one in values)


def _name(field: str, value: Any) -> str | None:
    """Return the one name in a field's value; None of a weight that changes nothing. Raises ApiError 400."""
    last = field.rpartition(".")[2]
    if last == "lora_request" and isinstance(value, Mapping):
        value = value.get("lora_name")
    values = value if isinstance(value, list) else [value]
    if last in NAMING and all(isinstance(one, str) and one for one in values):
        if len(set(values)) > 1:
            raise bad_request(f"{field}: one adapter answers all prompts of a request; send one for each.", field)
        return str(values[0])
    if REASONS.get(last) is _WEIGHT and all(one == 1 and one is not True for one in values):
        return None
    raise bad_request(f"{field} is not served like this: {REASONS.get(last, _REASON)}.", field)
