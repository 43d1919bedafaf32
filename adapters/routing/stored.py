"""The routes of a server, stored in the registry: put, deleted and looked up.

A change is one transaction that checks names, targets and cycles against the same state of the file. Knows no policy.
"""

import copy
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..documents import Document, DocumentFiles
from ..errors import AdapterConflict, AdapterError, AdapterNotFound, InvalidAdapter
from ..names import DEFAULT, Reference, check_name, parse_reference
from ..ownership import SERVER, Actor, is_private, owner_of
from ..registry import AdapterRegistry, check_unnamed, next_version
from ..registry_reader import AdapterRecord, RegistryReader, exists, find_row, record_of
from . import tables
from .bodies import Body, parse_body

FOLDER = "routes"

TargetsOf = Callable[[Body], Sequence[str]]
Find = Callable[[str], AdapterRecord | None]
"""Return the adapter version that a target names, if it names one."""
Check = Callable[[Body, Find], None]
"""Check a body whose targets exist by what they are. Raises InvalidAdapter."""


class RouteHead(NamedTuple):
    """One version of a route, without its body, which may be large. created: see `Route`."""

    name: str
    version: int
    created: float


@dataclass(frozen=True)
class Route:
    """One version of a route. created: when it was put, in seconds since 1970. text: its body as JSON. owner: whose."""

    name: str
    version: int
    created: float
    text: str
    owner: str = ""

    @property
    def head(self) -> RouteHead:
        return RouteHead(self.name, self.version, self.created)

    def body(self) -> Body:
        """Parse the body. Raises InvalidAdapter for what no release has written."""
        return parse_body(self.text)


class RouteReader:
    """Look-ups of routes, in any process."""

    def __init__(self, registry: RegistryReader) -> None:
        self._registry = registry

    def head(self, name: str) -> RouteHead | None:
        """Return the head of the route of a name; None if there is none."""
        rows = self._registry.read(tables.HEAD, (name,))
        return RouteHead(*rows[0]) if rows else None

    def find(self, name: str) -> Route | None:
        """Return the route of a name; None if there is none."""
        rows = self._registry.read(f"{tables.ROUTES} AND name = ?", (name,))
        return Route(*rows[0]) if rows else None

    def get(self, name: str) -> Route:
        """Return the route of a name. Raises AdapterNotFound."""
        route = self.find(name)
        if route is None:
            raise AdapterNotFound(f"there is no route {name[:140]!r}", param="name")
        return route

    def page(self, *, after: str = "", limit: int = 1000) -> list[Route]:
        """Return routes by name, beginning behind the name `after`."""
        query = f"{tables.ROUTES} AND name > ? ORDER BY name LIMIT ?"
        return [Route(*row) for row in self._registry.read(query, (after, limit))]


class RouteStore(RouteReader):
    """The routes in the process that changes them.

    base_ids: the base's names. targets_of: the names in a body. folder: of the state, for files beside the registry.
    check: what its kind asks of a body's targets.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        base_ids: str | Collection[str],
        targets_of: TargetsOf,
        folder: Path,
        check: Check | None = None,
    ) -> None:
        super().__init__(registry)
        self._changes = registry
        self._base_ids = frozenset({base_ids} if isinstance(base_ids, str) else base_ids)
        self._targets_of = targets_of
        self._check = check
        self._files = DocumentFiles(folder)
        self._order = threading.Lock()  # files are written in the order of the rows
        self._actor = SERVER
        self.on_change: Callable[[str, str], None] | None = None  # told of a name and its owner, on any thread

    def acting_for(self, actor: Actor, seen: RegistryReader) -> "RouteStore":
        """Return the same routes as `actor` sees them, whose changes are made for that one, if it may.

        seen: the registry, as that one sees it.
        """
        routes = copy.copy(self)
        routes._actor, routes._registry = actor, seen
        return routes

    def put(self, name: str, text: bytes | str) -> tuple[Route, bool]:
        """Make a route, or its next version; return it, and whether there was none. Returns when it is on the disk.

        Raises InvalidAdapter for a malformed name or body, an unknown target, a cycle, or targets that do not mix;
        AdapterConflict for a name that is taken; AdapterForbidden. Nothing is changed then.
        """
        check_name(name, self._base_ids)
        body = parse_body(text)
        content = text if isinstance(text, str) else text.decode()
        with self._order:
            with self._changes.transaction() as db:
                owner = self._actor.claim(db, name)
                before = self.head(name)
                if find_row(db, Reference(name)) is not None:
                    raise AdapterConflict(f"there is an adapter {name!r}; choose another name", param="name")
                route = Route(name, next_version(db, name), time.time(), content, owner)
                tables.write(db, _document(route), self._known(db, route, self._targets_of(body)))
                tables.check_ways(db, name)
                if self._check is not None:
                    self._check(body, partial(_record, db))
            self._files.put(_document(route), None if before is None else before.version)
        self._tell(route)
        return route, before is None

    def delete(self, name: str, *, force: bool = False) -> Route:
        """Delete a route; return it. A default that it was becomes the bare base.

        force: also if another route names it. Raises AdapterNotFound, AdapterConflict, AdapterForbidden, OSError.
        """
        with self._order, self._changes.transaction() as db:
            route = self.get(name)
            self._actor.check_change(db, Reference(name))
            if not force:
                check_unnamed(db, Reference(name))
            self._files.remove(name, route.version)  # first: one without a row would be back if the registry were lost
            tables.erase(db, name)
            self._changes.drop_lost_default(db)
        self._tell(route)
        return route

    def _tell(self, route: Route) -> None:
        if self.on_change is not None:
            self.on_change(route.name, route.owner)

    def _known(self, db: sqlite3.Connection, route: Route, targets: Sequence[str]) -> list[Reference]:
        """Return the targets beside the base as references.

        Raises InvalidAdapter for one that is not there, for who may use the route.
        """
        references = []
        for target in targets:
            if target in self._base_ids:
                continue
            reference = reference_of(target)
            if reference is None or not (reference == Reference(route.name) or exists(db, reference)):
                raise _no_target(target)
            self._check_common(db, route, target, reference.name)
            references.append(reference)
        return references

    def _check_common(self, db: sqlite3.Connection, route: Route, target: str, name: str) -> None:
        """Raise InvalidAdapter for a target that not everybody sees who sees the route."""
        owner = route.owner if name == route.name else owner_of(db, name) or ""
        if self._actor.shared or not is_private(owner) or owner == route.owner:
            return
        if not self._actor.sees(owner):
            raise _no_target(target)
        raise InvalidAdapter(f"{target[:140]!r} is a tenant's own, and others may use this route", param="target")


def settle_routes(registry: AdapterRegistry, targets_of: TargetsOf, folder: Path, *, is_new: bool) -> list[str]:
    """Bring the routes' rows and files to agree, for the start. Returns the names of routes that were lost.

    Rows that no release has written are deleted. is_new: the registry has just been made.
    """
    with registry.transaction() as db:
        for name, _, _, text, _ in tables.all_rows(db):
            if not _is_valid(name, text):
                tables.erase(db, name)
        rows = [Document(*row) for row in tables.all_rows(db)]
        lost = DocumentFiles(folder).settle(rows, lambda one: _is_valid(one.name, one.body), is_new=is_new)
        for document in lost:
            targets = map(reference_of, targets_of(parse_body(document.body)))
            tables.write(db, document, [reference for reference in targets if reference is not None])
    return [document.name for document in lost]


def _no_target(target: str) -> InvalidAdapter:
    return InvalidAdapter(f"there is no adapter, version or route {target[:140]!r} to be a target", param="target")


def _record(db: sqlite3.Connection, target: str) -> AdapterRecord | None:
    reference = reference_of(target)
    row = None if reference is None else find_row(db, reference)
    return None if row is None else record_of(row)


def reference_of(target: str) -> Reference | None:
    """Return a target as a name with or without a version; None where it can be neither."""
    reference = parse_reference(target)
    return None if reference is None or reference.name == DEFAULT else reference


def _is_valid(name: object, text: object) -> bool:
    """Return whether a row or a file is a route that some release has written."""
    if not isinstance(name, str) or not isinstance(text, str) or parse_reference(name) is None:
        return False
    try:
        parse_body(text)
    except AdapterError:
        return False
    return True


def _document(route: Route) -> Document:
    return Document(route.name, route.version, route.created, route.text, route.owner)
