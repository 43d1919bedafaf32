"""The file of keys: one key a line, or TOML with `[[keys]]`, which says whose each is. Knows the form, not the disk."""

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from peftserve.adapters.quotas import Quota

from ...sizes import parse_size
from .tenant import Tenant, TenantLimits, of_file, of_key

Keys = Mapping[bytes, Tenant]
"""SHA-256 of a key to who has it."""

MAX_NAME = 64
MAX_WEIGHT, MIN_WEIGHT = 1e4, 1e-4
_TABLE = re.compile(r"^[ \t]*\[\[[ \t]*[\"']?keys[\"']?[ \t]*\]\]", re.MULTILINE)
_HEADER = re.compile(r"\[.*\]")  # of a table: no key, which would let in who knows the form of the file
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_ROLES = ("user", "admin")


class KeyFileError(Exception):
    """A file of keys that cannot be used. The message says where and why, and never a key."""


def digest_of(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def parse_keys(content: bytes, quota: Quota) -> Keys:
    """Return who has which key. quota: of tenants for which the file says none. Raises KeyFileError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"is not UTF-8 (byte {error.start})") from None
    keys = _of_tables(text, quota) if _TABLE.search(text) else _of_lines(text, quota)
    if not keys:
        raise KeyFileError("has no key in it")
    return keys


def keys_alone(keys: Iterable[str], quota: Quota) -> Keys:
    """Return who has keys that are by themselves, each of one who may do all."""
    return {digest_of(key.encode()): of_key(key.encode(), quota) for key in keys}


def _of_lines(text: str, quota: Quota) -> Keys:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    for number, line in lines:
        if _HEADER.fullmatch(line):
            raise KeyFileError(f"has a table of TOML in line {number}; entries of tenants begin with [[keys]]")
    return keys_alone((line for _, line in lines if line and not line.startswith("#")), quota)


def _of_tables(text: str, quota: Quota) -> Keys:
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers too long, and of brackets too deep
        raise KeyFileError(f"is not TOML: {_without_text(str(error))}") from None
    for name in document.keys() - {"keys"}:
        raise KeyFileError(f"has {name[:MAX_NAME]!r} at its top; there is only [[keys]]")
    entries = document["keys"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise KeyFileError("has a keys that is no list of tables; each entry begins with [[keys]]")
    parsed = [_Entry(number, entry) for number, entry in enumerate(entries, 1)]
    limits = _limits(parsed)
    keys: dict[bytes, Tenant] = {}
    first: dict[bytes, int] = {}
    for entry in parsed:
        if entry.digest in first:
            raise entry.error(f"its key is that of entry {first[entry.digest]}; each key is of one tenant")
        first[entry.digest] = entry.number
        keys[entry.digest] = of_file(entry.name, entry.is_admin, limits[entry.name], quota)
    return keys


def _without_text(message: str) -> str:
    """Return a fault's place without what stands there, which may be a key."""
    place = re.search(r"\(at (?:line \d+, column \d+|end of document)\)$", message)
    return f"a syntax error {place[0][1:-1]}" if place else "a syntax error"


def _limits(entries: Iterable["_Entry"]) -> Mapping[str, TenantLimits]:
    """Return the limits of each tenant, of which several entries may say a part.

    Raises KeyFileError where two say different things.
    """
    said: dict[str, dict[str, tuple[Any, int]]] = {}
    for entry in entries:
        known = said.setdefault(entry.name, {})
        for field, value in entry.limits.items():
            before, number = known.setdefault(field, (value, entry.number))
            if before != value:
                raise entry.error(
                    f"{field} is {value}, and {before} in entry {number} of the same tenant; say it once, or the same"
                )
    return {name: TenantLimits(**{field: value for field, (value, _) in known.items()}) for name, known in said.items()}


class _Entry:
    """One `[[keys]]`, checked. number: from 1. digest: SHA-256 of its key. limits: those that it says."""

    def __init__(self, number: int, said: Mapping[str, Any]) -> None:
        self.number = number
        self._fields = said
        self._where = f"entry {number} of [[keys]]"
        known = {"name", "key", "sha256", "role", *_LIMITS}
        for field in said.keys() - known:
            raise self.error(f"{field[:MAX_NAME]!r} is no field; there are {', '.join(sorted(known))}")
        self.name = self._name()
        self._where += f" ({self.name})"
        self.digest = self._digest()
        self.is_admin = self._role() == "admin"
        self.limits = {field: self._checked(field, check) for field, check in _LIMITS.items() if field in said}

    def error(self, what: str) -> KeyFileError:
        return KeyFileError(f"{self._where}: {what}")

    def _name(self) -> str:
        name = self._fields.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise self.error(f'name must be the tenant\'s, 1 to {MAX_NAME} printable characters, such as name = "acme"')
        return name

    def _digest(self) -> bytes:
        key, digest = self._fields.get("key"), self._fields.get("sha256")
        if (key is None) == (digest is None):
            raise self.error("it takes one of key and sha256" + (", not both" if key is not None else ""))
        if digest is not None:
            if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
                raise self.error("sha256 must be the 64 hexadecimal digits of the key's SHA-256")
            return bytes.fromhex(digest)
        if not isinstance(key, str) or not key or key != key.strip():
            raise self.error("key must be a text without spaces around it")
        return digest_of(key.encode())

    def _role(self) -> str:
        role = self._fields.get("role", "user")
        if role not in _ROLES:
            raise self.error(f"role must be one of {', '.join(_ROLES)}")
        return str(role)

    def _checked(self, field: str, check: Callable[[Any], Any]) -> Any:
        try:
            return check(self._fields[field])
        except ValueError as error:
            raise self.error(f"{field} {error}") from None


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not MIN_WEIGHT <= value <= MAX_WEIGHT:
        raise ValueError(f"must be a number from {MIN_WEIGHT} to {MAX_WEIGHT:g}")
    return float(value)


def _count(low: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 53:
            raise ValueError(f"must be a whole number of {low} or more" + ("; 0 is no limit" if low == 0 else ""))
        return value

    return check


def _size(value: Any) -> int:
    if isinstance(value, str):
        return 0 if value.strip() == "0" else parse_size(value)
    return _count(0)(value)


_LIMITS: Mapping[str, Callable[[Any], Any]] = {
    "weight": _weight,
    "max_queued": _count(1),
    "tokens_per_minute": _count(0),
    "max_adapters": _count(0),
    "max_adapter_bytes": _size,
}
assert [*_LIMITS] == [field.name for field in fields(TenantLimits)]
