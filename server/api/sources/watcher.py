"""A folder whose sub-folders are adapters by their names, for as long as they are there.

It is looked at every few seconds. A sub-folder is taken when two looks in a row find its files alike, so that one which
is being written waits; one that has changed becomes a new version; of one that is gone the versions that came from it
are deleted. Where an adapter came from is in the registry, so that a start takes only what has changed since.
"""

import asyncio
import hashlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.files import FILES
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.names import parse_reference
from peftserve.adapters.registry_reader import AdapterRecord, RegistryReader
from peftserve.adapters.store import AdapterStore

from ..http.errors import translate
from ..http.threads import entered

logger = logging.getLogger(__name__)

PERIOD = 2.0  # seconds from look to look
SETTLE = 0.2  # the same at the start, which waits for it
SHARE = 20  # a look that takes long is made so much more rarely than it takes
MOST_LOOKS = 32  # from one try to the next of what failed by no fault of its own
KIND = "folder"  # of the origin

State = str | None
"""What a sub-folder's files are like, by their names, sizes and times; None where they are not all there."""


@dataclass
class _Later:
    """What is tried again after some looks. state: of the files that could not be taken."""

    state: str
    tries: int = 0
    looks: int = 0


class FolderWatcher:
    """The watcher of one folder. limit: most bytes of an adapter."""

    def __init__(
        self, folder: Path, registry: RegistryReader, store: AdapterStore, library: AdapterLibrary, limit: int
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._store = store
        self._library = library
        self._limit = limit
        self._seen: dict[str, State] = {}  # at the last look
        self._done: dict[str, State] = {}  # what was taken or refused
        self._put_off: dict[str, _Later] = {}
        self._told: set[str] = set()  # what was said of the folder and of adapters that stay, once

    async def start(self) -> None:
        """Take what is there, and delete what has gone since the last time."""
        came = await asyncio.to_thread(self._came_from_here)
        self._done = {name: str(records[-1].origin.get("resolved")) for name, records in came.items()}
        await self.look()
        await asyncio.sleep(SETTLE)
        await self.look()

    async def run(self) -> None:
        """Look again and again."""
        while True:
            began = time.monotonic()
            await self.look()
            await asyncio.sleep(max(PERIOD, SHARE * (time.monotonic() - began)))

    async def look(self) -> None:
        """Look at the folder once. Whatever is wrong with one adapter is logged, once for each state of its files."""
        try:
            states = await asyncio.to_thread(scan, self._folder)
        except OSError as error:  # nothing is deleted for a folder that cannot be read
            self._tell("folder", "The folder of --adapter-dir cannot be read: %s", error.strerror)
            return
        self._told.discard("folder")
        before, self._seen = self._seen, states
        self._put_off = {name: later for name, later in self._put_off.items() if name in states or name in before}
        for later in self._put_off.values():
            later.looks -= 1
        for name, state in states.items():
            if state is None or before.get(name) != state or state == self._done.get(name):
                continue
            if not self._is_put_off(name, state):
                await self._take(name, state)
        for name in self._done.keys() - states.keys() - before.keys():
            await self._drop(name)

    async def _take(self, name: str, state: str) -> None:
        """Make what a sub-folder holds the newest version of its name.

        What is wrong with the sub-folder stays wrong; what is wrong with the server, a later look may find mended.
        """
        folder = self._folder / name
        try:
            async with entered(self._store.stage, self._limit) as staged:
                await asyncio.to_thread(staged.copy_folder, folder)
                if await asyncio.to_thread(_state_of, folder) != state:
                    return  # changed meanwhile: a later look takes it
                origin = {"kind": KIND, "uri": name, "resolved": state}
                record = await self._library.add(staged, name, origin=origin, only_if_new=True)
        except Exception as error:
            answer = translate(error)
            if answer.status_code >= 500:
                self._put_it_off(name, state, error)
                return
            logger.warning("The folder %s is not taken as an adapter: %s", name, answer.body.message)
        else:
            logger.info("Adapter %s was taken from its folder", record.ref)
        self._put_off.pop(name, None)
        self._done[name] = state

    def _is_put_off(self, name: str, state: str) -> bool:
        later = self._put_off.get(name)
        return later is not None and later.state == state and later.looks > 0

    def _put_it_off(self, name: str, state: str, error: Exception) -> None:
        """Try again ever later, and say so once for each state of the files."""
        later = self._put_off.get(name)
        if later is None or later.state != state:
            later = self._put_off[name] = _Later(state)
            logger.warning("The folder %s is not taken as an adapter yet", name, exc_info=error)
        later.tries += 1
        later.looks = min(2**later.tries, MOST_LOOKS)

    async def _drop(self, name: str) -> None:
        """Delete the versions of a name that came from a folder which is gone. What a route names stays."""
        records = [record for record in self._versions(name) if _is_from_folder(record)]
        try:
            for record in records:
                await self._library.delete(name, record.ref.version, force=False)
                logger.info("Adapter %s was deleted: its folder is gone", record.ref)
        except AdapterError as error:
            self._tell(name, "The folder %s is gone, and its adapter stays: %s", name, error.message)
            return
        self._told.discard(name)
        del self._done[name]
        self._put_off.pop(name, None)

    def _tell(self, what: str, message: str, *arguments: object) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning(message, *arguments)

    def _versions(self, name: str) -> list[AdapterRecord]:
        found = (self._registry.find(ref.name, ref.version) for ref in self._registry.refs() if ref.name == name)
        return [record for record in found if record is not None]

    def _came_from_here(self) -> Mapping[str, list[AdapterRecord]]:
        """Return the versions that came from a folder, by name, oldest first."""
        came = defaultdict(list)
        for ref in self._registry.refs():
            record = self._registry.find(ref.name, ref.version)
            if record is not None and _is_from_folder(record):
                came[ref.name].append(record)
        return {name: sorted(records, key=lambda record: record.ref.version) for name, records in came.items()}


def scan(folder: Path) -> dict[str, State]:
    """Return the sub-folders that can be adapters by their names, with the states of their files. Raises OSError."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if _can_be_adapter(entry))
    return {name: _state_of(folder / name) for name in names}


def _can_be_adapter(entry: "os.DirEntry[str]") -> bool:
    reference = parse_reference(entry.name)
    return reference is not None and reference.version is None and entry.is_dir()


def _state_of(folder: Path) -> State:
    try:
        facts = sorted(_facts_of(folder))
    except OSError:  # going, or coming
        return None
    if not {name for name, *_ in facts}.issuperset(FILES):
        return None
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


def _facts_of(folder: Path, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of each of an adapter's files, its experts' among them."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name in FILES and entry.is_file():
                status = entry.stat()
                yield prefix + entry.name, status.st_size, status.st_mtime_ns
            elif not prefix and entry.is_dir():
                yield from _facts_of(folder / entry.name, f"{entry.name}/")


def _is_from_folder(record: AdapterRecord) -> bool:
    return record.origin.get("kind") == KIND
