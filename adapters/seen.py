"""The registry as one tenant sees it: rows of other tenants' names are not there, whatever is asked.

A connection of its own has views of the tables under the tables' own names, so every query that there is, and every
one that will be, sees the tenant's rows and those that are everybody's. Knows the tables' owners and no query.
"""

import sqlite3
import threading
from pathlib import Path
from types import TracebackType

from .ownership import PRIVATE, Actor
from .registry_file import connect, translate_errors
from .registry_reader import RegistryReader

_VISIBLE = f"(owner = viewer() OR NOT {PRIVATE})"
_VIEWS = (
    *(f"CREATE TEMP VIEW {table} AS SELECT * FROM main.{table} WHERE {_VISIBLE}" for table in ("versions", "deleted")),
    # Settings are of names: there as long as a version of the name is.
    f"""
    CREATE TEMP VIEW documents AS SELECT * FROM main.documents d WHERE CASE kind
    WHEN 'route' THEN {_VISIBLE}
    ELSE EXISTS (SELECT 1 FROM main.versions v WHERE v.name = d.name AND {_VISIBLE.replace("owner", "v.owner")})
    END
    """,
    "CREATE TEMP VIEW route_targets AS SELECT * FROM main.route_targets WHERE route IN (SELECT name FROM documents)",
)
_CACHE = "PRAGMA cache_size = -512"  # KiB


class SharedConnection:
    """One connection for the look-ups of all tenants, opened at the first. path: of the registry's file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None  # set by the first `take`
        self._lock = threading.RLock()
        self._viewer = ""

    def registry(self, whole: RegistryReader, actor: Actor) -> RegistryReader:
        """Return the look-ups of one who may not see the whole registry, or it. Raises StateUnusable."""
        return whole if actor.sees_all else SeenRegistry(self, actor.owner)

    def take(self, owner: str) -> None:
        """Look at the tables as this owner, in this thread, until `leave`."""
        self._lock.acquire()
        self._viewer = owner

    def leave(self) -> None:
        self._lock.release()

    @property
    def db(self) -> sqlite3.Connection:
        """Return the connection. To be used between `take` and `leave`. Raises sqlite3.Error."""
        if self._db is None:
            self._db = connect(self._path)
            self._db.create_function("viewer", 0, lambda: self._viewer, deterministic=True)
            for statement in (_CACHE, *_VIEWS):
                self._db.execute(statement)
        return self._db

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None


class SeenRegistry(RegistryReader):
    """The look-ups of one owner on a shared connection."""

    def __init__(self, shared: SharedConnection, owner: str) -> None:
        """Open the connection, if it is the first. Raises StateUnusable."""
        self._reading = _AsOwner(shared, owner)
        with self._reading, translate_errors():
            self._reader = shared.db

    def close(self) -> None:
        """Do nothing: the connection is that of all tenants."""


class _AsOwner:
    """A context in which the shared connection is this thread's and shows one owner's rows."""

    def __init__(self, shared: SharedConnection, owner: str) -> None:
        self._shared = shared
        self._owner = owner

    def __enter__(self) -> None:
        self._shared.take(self._owner)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shared.leave()
