"""The tables of routes: their documents, and who names whom. Each function runs inside a transaction of the caller."""

import sqlite3
from collections.abc import Iterable
from typing import Any

from ..documents import Document
from ..errors import InvalidAdapter
from ..names import Reference
from ..registry_rows import RAISE_LAST

MAX_DEPTH = 8  # routes on one way to an answer
ROUTES = "SELECT name, version, created, body, owner FROM documents WHERE kind = 'route'"
HEAD = "SELECT name, version, created FROM documents WHERE kind = 'route' AND name = ?"

# How far one can go from a route, or how far one may have come to it. UNION drops what was there at the same depth.
_WALK = """
WITH RECURSIVE way (name, depth) AS (
    SELECT ?1, 0 UNION SELECT t.{to}, depth + 1 FROM way JOIN route_targets t ON t.{here} = way.name WHERE depth <= ?2
)
SELECT max(depth), max(depth > 0 AND name = ?1) FROM way
"""
_DOWN = _WALK.format(here="route", to="name")
_UP = _WALK.format(here="name", to="route")


def write(db: sqlite3.Connection, route: Document, targets: Iterable[Reference]) -> None:
    """Write a version of a route, in place of the one before. targets: what it names beside the base."""
    erase(db, route.name)
    db.execute("INSERT INTO documents VALUES ('route', ?, ?, ?, ?, ?)", route)
    db.executemany("INSERT INTO route_targets VALUES (?, ?, ?)", [(*target, route.name) for target in targets])
    db.execute(f"INSERT INTO names VALUES (?, ?) {RAISE_LAST}", (route.name, route.version))


def erase(db: sqlite3.Connection, name: object) -> None:
    """Delete a route, if there is one. name: as a damaged file may give it."""
    db.execute("DELETE FROM documents WHERE kind = 'route' AND name IS ?", (name,))
    db.execute("DELETE FROM route_targets WHERE route IS ?", (name,))


def check_ways(db: sqlite3.Connection, name: str) -> None:
    """Check the ways through a route that has been written. Raises InvalidAdapter for a cycle, or a way too long."""
    below, is_cycle = db.execute(_DOWN, (name, MAX_DEPTH)).fetchone()
    above, _ = db.execute(_UP, (name, MAX_DEPTH)).fetchone()
    if is_cycle:
        raise InvalidAdapter(f"the route {name!r} would lead back to itself", param="target")
    if below + above > MAX_DEPTH:
        raise InvalidAdapter(f"there would be more than {MAX_DEPTH} routes on one way", param="target")


def all_rows(db: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return name, version, created, body and owner of all routes, each of whatever type it is."""
    return db.execute(ROUTES).fetchall()
