"""JSON from untrusted sources: one object or list, no duplicate keys, no NaN, no bottomless nesting."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import InvalidAdapter


def parse_object(text: bytes, what: str) -> Mapping[str, Any]:
    """Parse the text of one JSON object. Raises InvalidAdapter.

    text: of a length that the caller has limited. what: the name of the text in messages.
    """
    value = _parse(text, what)
    if not isinstance(value, dict):
        raise InvalidAdapter(f"{what} must be a JSON object", param=what)
    return value


def parse_list(text: bytes, what: str) -> list[Any]:
    """Parse the text of one JSON list, as `parse_object` does."""
    value = _parse(text, what)
    if not isinstance(value, list):
        raise InvalidAdapter(f"{what} must be a JSON list", param=what)
    return value


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except RecursionError:
        raise InvalidAdapter(f"{what} is nested too deeply", param=what) from None
    except ValueError as error:  # bad syntax or UTF-8, a number with thousands of digits, or raised by the hooks below
        raise InvalidAdapter(f"{what} is not valid JSON: {error}", param=what) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        ((duplicate, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {duplicate[:200]!r} occurs twice")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")
