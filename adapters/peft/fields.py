"""Typed access to the fields of adapter_config.json, with messages that name the field."""

from collections.abc import Mapping
from typing import Any

from ..errors import InvalidAdapter

MAX_NAMES = 1 << 16
MAX_NUMBER = 1e30
MAX_INTEGER = (1 << 64) - 1  # seeds included; what is larger may not even fit a float


class Fields:
    """The fields of a configuration. A missing field and one that is null both read as the default."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self._raw = raw

    def value(self, name: str) -> Any:
        """Return a field as it is; None if missing."""
        return self._raw.get(name)

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise _wrong(name, "true or false", value)
        return value

    def integer(self, name: str, default: int, minimum: int) -> int:
        """Return an integer of at least `minimum`. Raises InvalidAdapter."""
        return _integer(name, self._get(name, default), minimum)

    def number(self, name: str, default: float) -> float:
        return _number(name, self._get(name, default))

    def choice(self, name: str, default: str, options: tuple[str, ...]) -> str:
        """Return one of `options`. Raises InvalidAdapter."""
        value = self._get(name, default)
        if not isinstance(value, str) or value not in options:
            raise _wrong(name, f"one of {', '.join(options)}", value)
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers, or a single one, as a tuple; empty if missing. Raises InvalidAdapter."""
        value = self._get(name, [])
        items = value if isinstance(value, list) else [value]
        return tuple(_integer(name, item, 0) for item in items)

    def strings(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, or a single one, as a tuple; empty if missing. Raises InvalidAdapter."""
        value = self._get(name, [])
        return _strings(name, [value] if isinstance(value, str) else value)

    def names_or_pattern(self, name: str) -> tuple[str, ...] | str:
        """Return a list of names, or a string that the caller reads as an expression; empty if missing."""
        value = self._get(name, [])
        return value if isinstance(value, str) else _strings(name, value)

    def integer_map(self, name: str, minimum: int) -> dict[str, int]:
        return {key: _integer(f"{name}[{key!r}]", value, minimum) for key, value in self._map(name).items()}

    def number_map(self, name: str) -> dict[str, float]:
        return {key: _number(f"{name}[{key!r}]", value) for key, value in self._map(name).items()}

    def ids_by_name(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return name to list of integers; a list alone has the empty name. Empty if missing. Raises InvalidAdapter."""
        value = self._get(name, {})
        lists = {"": value} if isinstance(value, list) else self._map(name)
        return {key: _ids(name if key == "" else f"{name}[{key!r}]", ids) for key, ids in lists.items() if ids != []}

    def _map(self, name: str) -> dict[str, Any]:
        value = self._get(name, {})
        if not isinstance(value, dict):
            raise _wrong(name, "an object", value)
        return value

    def _get(self, name: str, default: object) -> Any:
        value = self._raw.get(name)
        return default if value is None else value


def _integer(name: str, value: object, minimum: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise _wrong(name, f"an integer of at least {minimum}", value)
    if value > MAX_INTEGER:
        raise _wrong(name, f"an integer of at most {MAX_INTEGER}", value)
    return value


def _ids(name: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise _wrong(name, "a list of integers", value)
    return tuple(_integer(name, item, 0) for item in value)


def _number(name: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > MAX_NUMBER:
        raise _wrong(name, "a number", value)
    return float(value)


def _strings(name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _wrong(name, "a string or a list of strings", value)
    if len(value) > MAX_NAMES:
        raise InvalidAdapter(f"{name} has {len(value)} entries; the limit is {MAX_NAMES}", param=name)
    return tuple(value)


def _wrong(name: str, wanted: str, value: object) -> InvalidAdapter:
    return InvalidAdapter(f"{name[:200]} must be {wanted}, not {repr(value)[:80]}", param=name.partition("[")[0])
