"""How adapters are named, and how a request spells a version. Knows no registry."""

import re
from typing import NamedTuple

from .errors import AdapterConflict, InvalidAdapter

DEFAULT = "default"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Reference(NamedTuple):
    """An adapter as a request names it. version: None means the newest."""

    name: str
    version: int | None = None


class VersionRef(NamedTuple):
    """One version of one adapter; it never means anything else, not even after a deletion.

    digest: of its files, 64 hexadecimal digits.
    """

    name: str
    version: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def check_name(name: str, reserved: frozenset[str] | set[str] = frozenset()) -> None:
    """Raise InvalidAdapter for a malformed name, AdapterConflict for `default` or one of `reserved`."""
    if not _NAME.fullmatch(name):
        raise InvalidAdapter(
            f"{name[:140]!r} is not a name for an adapter or a route: 1 to 128 letters, digits, '.', '_' or '-', "
            "the first a letter or a digit",
            param="name",
        )
    if name == DEFAULT or name in reserved:
        raise AdapterConflict(f"the name {name!r} is reserved; choose another", param="name")


def is_digest(text: str) -> bool:
    """Return whether a text is written as digests of adapters are: 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def parse_reference(text: str) -> Reference | None:
    """Parse `name` or `name@version`; None if the text cannot be either."""
    name, at, version = text.partition("@")
    if not _NAME.fullmatch(name) or (at and not _VERSION.fullmatch(version)):
        return None
    return Reference(name, int(version) if at else None)
