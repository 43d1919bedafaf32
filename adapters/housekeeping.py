"""What ends by itself: names whose time is over, deleted versions that can be restored no longer, and versions beyond
the newest ones of a name.

What is due is worked out from the registry at each look, so that a restart forgets nothing. Knows no HTTP.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Iterable
from functools import partial

import msgspec

from . import trash
from .errors import AdapterConflict, AdapterNotFound
from .events import Event
from .leases import Holders
from .library import AdapterLibrary
from .names import Reference, VersionRef
from .registry_reader import RegistryReader, read_default
from .stored_settings import SettingsReader

logger = logging.getLogger(__name__)

LONGEST = 30.0  # seconds between two looks
SHORTEST = 0.2
AGAIN = 5.0  # behind a look that failed
_SUPERSEDED = """
SELECT name, version, digest FROM (
    SELECT name, version, digest, row_number() OVER (PARTITION BY name ORDER BY version DESC) AS place FROM versions
    WHERE ?1 IS NULL OR name IN (SELECT value FROM json_each(?1))
) WHERE place > ?2
"""


class Housekeeper:
    """The one timer of a server. reader: its own connection, which may take its time."""

    def __init__(self, library: AdapterLibrary, holders: Holders, reader: RegistryReader) -> None:
        self._library = library
        self._holders = holders
        self._reader = reader
        self._settings = SettingsReader(reader)
        self._awake = asyncio.Event()
        self._pushed: set[str] | None = None  # names with new versions; None: a look at all
        self._retiring: dict[VersionRef, asyncio.Task[None]] = {}
        library.events.add_listener(self._heed)

    async def run(self) -> None:
        """Look again and again, until this is cancelled."""
        try:
            while True:
                self._awake.clear()
                try:
                    pause = await self.sweep()
                except Exception:
                    logger.exception("What is due could not be deleted")
                    pause = AGAIN
                try:
                    await asyncio.wait_for(self._awake.wait(), pause)
                except TimeoutError:
                    self._pushed = None
        finally:
            for task in self._retiring.values():
                task.cancel()
            await asyncio.gather(*self._retiring.values(), return_exceptions=True)

    def wake(self) -> None:
        """Look soon: settings have changed."""
        self._awake.set()

    async def sweep(self) -> float:
        """Delete what is due. Returns how many seconds nothing else is."""
        names, self._pushed = self._pushed, set()
        await self._library.purge_overdue()
        for name in await asyncio.to_thread(self._settings.expired, time.time()):
            await self._end(name)
        if self._library.keeping.versions:
            for ref in await asyncio.to_thread(self._superseded, names):
                if ref not in self._retiring:
                    self._retiring[ref] = asyncio.create_task(self._retire(ref))
        return await asyncio.to_thread(self._pause)

    def _heed(self, event: Event) -> None:
        if event.event in ("default.changed", "route.changed"):
            self._pushed = None
        elif event.event in ("adapter.added", "adapter.restored") and self._pushed is not None and event.name:
            self._pushed.add(event.name)
        else:
            return
        self._awake.set()

    async def _end(self, name: str) -> None:
        """Delete a name whose time is over, unless a route names it, or it has been renewed meanwhile."""
        within = partial(self._library.settings.check_over, name=name, now=time.time())
        try:
            await self._library.delete(name, force=False, within=within)
        except (AdapterConflict, AdapterNotFound) as error:
            logger.debug("%s stays: %s", name, error.message)
        else:
            logger.info("The time of adapter %s was over: deleted", name)

    async def _retire(self, ref: VersionRef) -> None:
        """Delete a version that newer ones have superseded, once no request runs on it, if nothing names it."""
        within = partial(check_superseded, ref=ref, kept=self._library.keeping.versions)
        try:
            if not await asyncio.to_thread(self._is_shared, ref):
                await self._holders.idle(ref.digest)
            await self._library.delete(ref.name, ref.version, force=False, purge=True, within=within)
        except (AdapterConflict, AdapterNotFound) as error:
            logger.debug("%s stays: %s", ref, error.message)
        except Exception:
            logger.exception("%s, which newer versions supersede, could not be deleted", ref)
        finally:
            del self._retiring[ref]

    def _is_shared(self, ref: VersionRef) -> bool:
        """Return whether other versions have the same content: then its requests say nothing of this one."""
        return len(self._reader.refs_of(ref.digest)) > 1

    def _superseded(self, names: Iterable[str] | None) -> list[VersionRef]:
        among = None if names is None else msgspec.json.encode(sorted(names)).decode()
        rows = self._reader.read(_SUPERSEDED, (among, self._library.keeping.versions))
        return [VersionRef(*row) for row in rows]

    def _pause(self) -> float:
        now = time.time()
        ends = (self._settings.next_end(now), trash.next_overdue(self._reader))
        left = min((end - now for end in ends if end is not None), default=LONGEST)
        return min(max(left, SHORTEST), LONGEST)


def check_superseded(db: sqlite3.Connection, ref: VersionRef, kept: int) -> None:
    """Raise AdapterConflict for a version that is among the newest `kept` of its name, or the server's default.

    Inside a transaction.
    """
    (newer,) = db.execute("SELECT count(*) FROM versions WHERE name = ? AND version > ?", ref[:2]).fetchone()
    if newer < kept:
        raise AdapterConflict(f"{ref} is among the newest {kept} of {ref.name!r}", param="name")
    if read_default(db) == Reference(ref.name, ref.version):
        raise AdapterConflict(f"{ref} is the server's default", param="name")
