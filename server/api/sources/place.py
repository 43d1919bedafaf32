"""Where an adapter's files are: a type, an address and a revision, as a client or the operator spells them.

SourceFailed        the files cannot be had from there (400, code `source_failed`)
└── SourceMissing   there is nothing of this name
"""

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..http.errors import ApiError

PARAM = "source.uri"
SCHEMES = {
    "hub": "hub",
    "hf": "hub",
    "huggingface": "hub",
    "s3": "s3",
    "gs": "gs",
    "gcs": "gs",
    "http": "http",
    "https": "http",
}
"""Scheme of an address to the type of its source."""

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)+(@[\w./-]+)?", re.ASCII)
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]")


class SourceFailed(ApiError):
    """The files cannot be had. The message says why, for whoever named the place, and holds no secret."""

    def __init__(self, message: str, param: str = PARAM) -> None:
        super().__init__(400, message, param=param, code="source_failed")


class SourceMissing(SourceFailed):
    """There is no such repository, revision, bucket or file."""


@dataclass(frozen=True)
class Place:
    """A place. type: of `FETCHERS`. uri: as that type spells it. revision: of a hub's repository; None: its newest."""

    type: str
    uri: str
    revision: str | None = None


@dataclass(frozen=True)
class SourceSettings:
    """What the operator allows and has set.

    types: of sources beside folders. folders: below one of which folders must lie. hosts: of HTTP; `*.example.com` is
    any below it, `*` any. allow_private: addresses that are not on the public internet. timeout: seconds of a whole
    fetch; 0 is no limit.
    """

    types: frozenset[str] = frozenset()
    folders: tuple[Path, ...] = ()
    hosts: tuple[str, ...] = ()
    allow_private: bool = False
    hub_token_file: Path | None = None
    timeout: float = 600.0


def parse_place(text: str, *, hub_ids: bool = False) -> Place:
    """Read an address with its scheme, a folder, or, with `hub_ids`, `owner/name` of a hub. Raises SourceFailed."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return Place("hub" if hub_ids and _HUB_ID.fullmatch(text) else "path", text)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "file":
        return Place("path", rest)
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SourceFailed(f"{scheme[:32]}:// is no kind of source; known are {known} and folders.")
    return Place(SCHEMES[scheme], text)


def without_scheme(place: Place) -> str:
    """Return what follows the scheme of an address, if it has one of the place's type. Raises SourceFailed."""
    match = _ADDRESS.fullmatch(place.uri)
    if match is None:
        return place.uri
    if SCHEMES.get(match[1].lower()) != place.type:
        wanted = " or ".join(f"{scheme}://" for scheme, kind in SCHEMES.items() if kind == place.type)
        raise SourceFailed(f"A source of type {place.type!r} has an address that begins with {wanted}.")
    return match[2]


def check_path(path: str) -> str:
    """Return a path inside of a source without slashes around it. Raises SourceFailed where a part cannot be a name."""
    path = path.strip("/")
    if _HIDDEN.search(path) or (path and any(part in ("", ".", "..") for part in path.split("/"))):
        raise SourceFailed("The source's path has a part that is no name: empty, '.', '..', or with odd characters.")
    return path


def beside(folder: str, relative: str) -> str:
    """Join a checked folder and a path, which may lead to a folder beside it. Raises SourceMissing above the root."""
    joined = posixpath.normpath(posixpath.join(folder, relative))
    if joined.startswith(".."):
        raise SourceMissing(f"The source holds no {posixpath.basename(relative)} there.")
    return joined


def refuse_revision(place: Place) -> None:
    """Raise SourceFailed for a revision where there is no such thing."""
    if place.revision is not None:
        raise SourceFailed(f"A source of type {place.type!r} has no revisions; leave it out.", "source.revision")


def origin_of(place: Place, resolved: str | None) -> dict[str, Any]:
    """Return where an adapter came from, as its card shows it: no secrets, and no folders above it on this machine.

    resolved: the commit or the tag of what was fetched.
    """
    uri = Path(place.uri).name if place.type == "path" else place.uri.partition("?")[0]
    origin = {"kind": "source", "type": place.type, "uri": uri, "revision": place.revision, "resolved": resolved}
    return {key: value for key, value in origin.items() if value is not None}
