"""The routes of a server, stored in the registry: put, deleted and looked up.

A change is one transaction that checks names, targets and cycles against the same state of the file. Knows no policy.
"""

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ..documents import Document, DocumentFiles
from ..errors import AdapterConflict, AdapterError, AdapterNotFound, InvalidAdapter
from ..names import DEFAULT, Reference, check_name, parse_reference
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
    """One version of a route. created: when it was put, in seconds since 1970. text: its body as JSON."""

    name: str
    version: int
    created: float
    text: str

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

    base_id: the base's name. targets_of: the names in a body. folder: of the state, for the files beside the registry.
    check: what its kind asks of a body's targets.
    """

    def __init__(
        self, registry: AdapterRegistry, base_id: str, targets_of: TargetsOf, folder: Path, check: Check | None = None
    ) -> None:
        super().__init__(registry)
        self._changes = registry
        self._base_id = base_id
        self._targets_of = targets_of
        self._check = check
        self._files = DocumentFiles(folder)
        self._order = threading.Lock()  # files are written in the order of the rows
        self.on_change: Callable[[str], None] | None = None  # set by who wants to be told of changes, on any thread

    def put(self, name: str, text: bytes | str) -> tuple[Route, bool]:
        """Make a route, or its next version; return it, and whether there was none. Returns when it is on the disk.

        Raises InvalidAdapter for a malformed name or body, an unknown target, a cycle, or targets that do not mix;
        AdapterConflict for a name that is taken. Nothing is changed then.
        """
        check_name(name, {self._base_id})
        body = parse_body(text)
        content = text if isinstance(text, str) else text.decode()
        with self._order:
            with self._changes.transaction() as db:
                before = self.head(name)
                if find_row(db, Reference(name)) is not None:
                    raise AdapterConflict(f"there is an adapter {name!r}; choose another name", param="name")
                route = Route(name, next_version(db, name), time.time(), content)
                tables.write(db, _document(route), self._known(db, name, self._targets_of(body)))
                tables.check_ways(db, name)
                if self._check is not None:
                    self._check(body, partial(_record, db))
            self._files.put(_document(route), None if before is None else before.version)
        self._tell(name)
        return route, before is None

    def delete(self, name: str, *, force: bool = False) -> Route:
        """Delete a route; return it. A default that it was becomes the bare base.

        force: also if another route names it. Raises AdapterNotFound, AdapterConflict, OSError.
        """
        with self._order, self._changes.transaction() as db:
            route = self.get(name)
            if not force:
                check_unnamed(db, Reference(name))
            self._files.remove(name, route.version)  # first: one without a row would be back if the registry were lost
            tables.erase(db, name)
            self._changes.drop_lost_default(db)
        self._tell(name)
        return route

    def _tell(self, name: str) -> None:
        if self.on_change is not None:
            self.on_change(name)

    def _known(self, db: sqlite3.Connection, name: str, targets: Sequence[str]) -> list[Reference]:
        """Return the targets beside the base as references. Raises InvalidAdapter for one that is not there."""
        references = []
        for target in targets:
            if target == self._base_id:
                continue
            reference = reference_of(target)
            if reference is None or not (reference == Reference(name) or exists(db, reference)):
                raise InvalidAdapter(
                    f"there is no adapter, version or route {target[:140]!r} to be a target", param="target"
                )
            references.append(reference)
        return references


def settle_routes(registry: AdapterRegistry, targets_of: TargetsOf, folder: Path, *, is_new: bool) -> list[str]:
    """Bring the routes' rows and files to agree, for the start. Returns the names of routes that were lost.

    Rows that no release has written are deleted. is_new: the registry has just been made.
    """
    with registry.transaction() as db:
        for name, _, _, text in tables.all_rows(db):
            if not _is_valid(name, text):
                tables.erase(db, name)
        rows = [Document(*row) for row in tables.all_rows(db)]
        lost = DocumentFiles(folder).settle(rows, lambda one: _is_valid(one.name, one.body), is_new=is_new)
        for document in lost:
            targets = map(reference_of, targets_of(parse_body(document.body)))
            tables.write(db, document, [reference for reference in targets if reference is not None])
    return [document.name for document in lost]


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
    return Document(route.name, route.version, route.created, route.text)
