"""How adapters are named, and how a request spells a version. Knows no registry."""

import re
from typing import NamedTuple

from .errors import AdapterConflict, InvalidAdapter

DEFAULT = "default"

# Parts as in the ids of hubs and of Ray's multiplexed models. None is `..`; and of a slash or a colon, which are three
# characters in the name of a file, there are few enough for that.
_NAME = re.compile(r"(?=.{1,128}\Z)[A-Za-z0-9][A-Za-z0-9._-]*(?:[/:][A-Za-z0-9][A-Za-z0-9._-]*){0,16}")
# What routes have behind a name: a name with such a part would be two things in a path.
VERBS = ("files", "load", "rollback", "restore", "versions", "explain", "evaluate")
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
            f"{name[:140]!r} is not a name for an adapter or a route: 1 to 128 ASCII letters, digits, '.', '_' or '-', "
            "the first a letter or a digit; at most 17 such parts with '/' or ':' between",
            param="name",
        )
    if verbs := [part for part in name.split("/")[1:] if part in VERBS]:
        raise InvalidAdapter(
            f"{name!r} is not a name for an adapter or a route: behind a '/' there may be no {verbs[0]!r}, which means "
            "something in the paths of this server",
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
