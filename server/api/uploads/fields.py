"""The settings of an adapter's name as a form spells them: texts. What they may be, `adapters/settings.py` checks."""

from collections.abc import Callable, Mapping
from typing import Any

from peftserve.adapters.strict_json import parse_list, parse_object

from ..http.errors import bad_request

_TRUTH = {"true": True, "1": True, "false": False, "0": False}


def settings_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """Return a form's fields as a merge patch of settings. Raises ApiError, InvalidAdapter."""
    return {name: PARSERS[name](text) for name, text in fields.items()}


def _pinned(text: str) -> bool:
    if text.lower() not in _TRUTH:
        raise bad_request("The field 'pinned' must be true or false.", "pinned")
    return _TRUTH[text.lower()]


def _ttl(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise bad_request("The field 'ttl' must be a number of seconds.", "ttl") from None


def _tags(text: str) -> list[Any]:
    """Return the tags of a JSON list, or of a text with commas."""
    if not text.lstrip().startswith("["):
        return [tag.strip() for tag in text.split(",") if tag.strip()]
    return parse_list(text.encode(), "tags")


def _metadata(text: str) -> Mapping[str, Any]:
    return parse_object(text.encode(), "metadata")


PARSERS: Mapping[str, Callable[[str], Any]] = {"pinned": _pinned, "ttl": _ttl, "tags": _tags, "metadata": _metadata}
