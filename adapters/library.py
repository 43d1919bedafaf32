"""The life of adapters on the server: upload, inspection, commit, version, deletion, and the races between them.

The one place that orders files, rows and leases:
  - a row is written after its files are in the store, and deleted before they leave it;
  - files leave when no row and no running request uses their digest;
  - of two operations on one digest, the second waits.
So a kill leaves at most files without a row, which the registry has marked as disposable: the next start deletes them
(`recovery`). Files that are damaged leave too, and their rows stay. Knows no HTTP and no torch.
"""

import asyncio
import copy
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import msgspec

from .additions import Addition, Additions
from .damage import Damage
from .events import EventLog
from .facts import AdapterFacts
from .file_checks import check_files
from .keeping import ALL, Keeping
from .leases import Holders
from .names import Reference, VersionRef, check_name
from .ownership import SERVER, Actor, owner_of
from .registry import AdapterRegistry, Within
from .registry_reader import AdapterRecord, check_no_route
from .removal import Removal
from .settings import Settings
from .staging import StagedUpload
from .store import AdapterStore
from .stored_settings import FOLDER as SETTINGS
from .stored_settings import SettingsStore

logger = logging.getLogger(__name__)

Inspect = Callable[[str, Path, str], Awaitable[AdapterFacts]]
Release = Callable[[str], Awaitable[None]]
_T = TypeVar("_T")


class AdapterLibrary:
    """All operations on the adapters of a server. Methods run on one event loop; disk work goes to threads.

    inspect: compiles the adapter with a digest, in a folder, against the base, for one who asks; raises AdapterError.
    release: gives the adapter's memory back in the engine.
    reserved: names that no adapter may take: the base's id and routes.
    lost: versions whose files are missing. keeping: for how long what is kept. events: are told what happens.
    """

    def __init__(
        self,
        store: AdapterStore,
        registry: AdapterRegistry,
        holders: Holders,
        *,
        inspect: Inspect,
        release: Release,
        reserved: frozenset[str] = frozenset(),
        lost: Iterable[VersionRef] = (),
        keeping: Keeping = ALL,
        events: EventLog | None = None,
    ) -> None:
        self._store = store
        self._registry = registry
        self._holders = holders
        self._inspect = inspect
        self._release = release
        self._reserved = reserved
        self.actor = SERVER
        self.keeping = keeping
        self.events = events or EventLog()
        self.settings = SettingsStore(registry, store.adapters.parent / SETTINGS)
        self._damage = Damage(store, registry, lost)
        self._additions = Additions(store, registry, self._damage, self.settings)
        self._removal = Removal(registry, self.settings, keeping)
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def damaged(self) -> Mapping[str, str]:
        """Digest to what is wrong, of versions that cannot be served until their files are uploaded again."""
        return self._damage.reasons

    def acting_for(self, actor: Actor) -> "AdapterLibrary":
        """Return the same library, which does for `actor` what it is asked to, if that one may."""
        library = copy.copy(self)
        library.actor = actor
        return library

    async def add(
        self,
        staged: StagedUpload,
        name: str,
        *,
        origin: Mapping[str, Any] | None = None,
        only_if_new: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> AdapterRecord:
        """Check a complete upload and register it as the newest version of `name`. The upload is used up in any case.

        origin: where it came from, for its card.
        only_if_new: if the newest version has the same content, return that one and make no other; for adapters that
            are named on the command line at every start, and for which there is no quota.
        settings: a merge patch of the name's settings.
        Raises AdapterError, and then nothing is registered.
        """
        with staged:
            self.check_name(name)
            self.check_settings(settings or {})
            await asyncio.to_thread(staged.settle)
            digest = staged.digest
            await asyncio.to_thread(check_files, staged.path, staged.experts)
            facts = await self._inspect(digest, staged.path, self.actor.name)
            facts = msgspec.structs.replace(facts, file_bytes=staged.num_bytes)
            # From here on a client that leaves must neither stop the work nor delete the files under it.
            addition = Addition(name, facts, origin or {}, self.actor, only_if_new, settings or {})
            return await asyncio.shield(self._spawn(self._register(staged.hand_over(), addition)))

    def check_name(self, name: str) -> None:
        """Raise InvalidAdapter, AdapterConflict or AdapterForbidden for a name to which nothing may be added."""
        check_name(name, self._reserved)
        self._registry.ask(partial(self.actor.claim, name=name))
        self._registry.ask(partial(check_no_route, name=name))

    def check_settings(self, patch: Mapping[str, Any]) -> None:
        """Raise InvalidAdapter for a patch of settings that no name can have, AdapterForbidden for one of others'."""
        Settings().patched(patch)
        if patch.get("pinned"):
            self.actor.check_admin("pin adapters to the device")

    async def roll_back(self, name: str, to: int | None = None) -> AdapterRecord:
        """Make an older version's content the newest again, as a version of its own; return it.

        to: the version; None for the one before the newest. Raises AdapterNotFound.
        """
        return await asyncio.shield(self._spawn(self._roll_back(name, to)))

    async def delete(
        self,
        name: str,
        version: int | None = None,
        *,
        force: bool = True,
        purge: bool = False,
        within: Within | None = None,
    ) -> list[VersionRef]:
        """Remove a name, or one version of it; return what was removed, once no new request can get it.

        Running requests keep it; memory is given back in the background when the last of them ends, and so are the
        files, unless they are kept to be restored. A default that loses its last version becomes the bare base.

        force: also if a route names it. purge: with what is kept of it. within: see `AdapterRegistry.delete`.
        Raises AdapterNotFound, AdapterConflict.
        """
        return await asyncio.shield(self._spawn(self._delete(Reference(name, version), force, purge, within)))

    async def restore(self, name: str, version: int | None = None) -> list[AdapterRecord]:
        """Bring back what was deleted of a name, or one version of it, oldest first.

        Raises AdapterNotFound, AdapterConflict, QuotaExceeded.
        """
        return await asyncio.shield(self._spawn(self._restore(Reference(name, version))))

    async def purge_overdue(self) -> None:
        """Give up what was deleted and can be restored no longer."""
        self.collect(await asyncio.to_thread(self._removal.discard_overdue))

    async def set_default(self, name: str | None) -> None:
        """Set the server's default; requests admitted before keep what they have. Raises AdapterNotFound."""
        await asyncio.to_thread(self._registry.set_default, name, self.actor)
        self.events.tell("default.changed", name=name)

    async def set(self, name: str, patch: Mapping[str, Any]) -> None:
        """Change settings of a name by a merge patch. Raises AdapterNotFound, AdapterForbidden, InvalidAdapter."""
        self.check_settings(patch)
        await asyncio.shield(self._spawn(asyncio.to_thread(self.settings.patch, name, patch, self.actor)))
        self.events.tell("settings.changed", name=name, owner=self._owner_of(name))

    def collect(self, refs: Iterable[VersionRef]) -> None:
        """Give back, in the background, the memory and the files of versions that are gone."""
        for digest in {ref.digest for ref in refs}:
            self._spawn(self._collect(digest))

    def recheck(self, digest: str) -> None:
        """Read again the files of an adapter that the engine could not use, and quarantine them if they are damaged."""
        if digest not in self.damaged:  # once is enough: each request for it would ask again
            self._spawn(self._examine(digest))

    async def settled(self) -> None:
        """Wait for all that runs in the background, such as deletions that wait for requests."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def close(self) -> None:
        """Stop waiting for requests; the next start deletes the files that are left on the disk."""
        for task in tuple(self._tasks):
            task.cancel()
        await self.settled()

    async def _roll_back(self, name: str, to: int | None) -> AdapterRecord:
        self._registry.ask(partial(self.actor.check_change, reference=Reference(name, to)))
        record = self._registry.get(name, to) if to is not None else self._registry.before_newest(name)
        async with self._exclusive(record.digest):  # no deletion of it ends meanwhile
            self._registry.get(name, record.version)
            origin = {"kind": "rollback", "version": record.version}
            newest = await asyncio.to_thread(
                self._registry.add, name, record.digest, record.facts, origin=origin, actor=self.actor
            )
            self.events.tell("adapter.added", newest.ref, owner=newest.owner)
            return newest

    async def _delete(self, reference: Reference, force: bool, purge: bool, within: Within | None) -> list[VersionRef]:
        had_default = self._registry.get_default() is not None
        owner = self._owner_of(reference.name)
        removed, discarded = await asyncio.to_thread(self._removal.remove, reference, force, purge, within, self.actor)
        for ref in removed:
            self.events.tell("adapter.deleted", ref, owner=owner)
        if had_default and self._registry.get_default() is None:
            logger.warning("The default adapter, %s, was deleted: the bare base answers for it now", reference.name)
            self.events.tell("default.changed")
        self.collect([*removed, *discarded])
        return [*removed, *discarded]

    async def _restore(self, reference: Reference) -> list[AdapterRecord]:
        records = await asyncio.to_thread(self._removal.take_back, reference, self.actor)
        for record in records:
            self.events.tell("adapter.restored", record.ref, owner=record.owner)
        return records

    async def _register(self, staged: StagedUpload, addition: Addition) -> AdapterRecord:
        async with self._exclusive(staged.digest):
            try:
                record, is_new = await asyncio.to_thread(self._additions.commit, staged, addition)
            finally:
                # Files without a row, if that is what is left, must not wait for the next start.
                if not self._registry.in_use(staged.digest):
                    self._spawn(self._collect(staged.digest))
            if is_new:
                self.events.tell("adapter.added", record.ref, owner=record.owner)
            return record

    async def _collect(self, digest: str) -> None:
        """Remove an adapter from memory and disk if nothing refers to it any more."""
        await self._holders.idle(digest)
        async with self._exclusive(digest):
            # No row, then no request can come to it; a row of the same content may have come back meanwhile.
            if self._registry.is_served(digest) or await self._holders.is_held(digest):
                return
            try:
                await self._release(digest)
            except Exception:
                logger.exception("the engine did not release adapter %s", digest)
            if not self._registry.in_use(digest):  # nor can it be restored
                await asyncio.to_thread(self._remove_files, digest)

    def _remove_files(self, digest: str) -> None:
        self._store.remove(digest)
        self._registry.unmark_disposable(digest)
        self._damage.mend(digest)

    async def _examine(self, digest: str) -> None:
        async with self._exclusive(digest):
            if self._registry.in_use(digest):
                await asyncio.to_thread(self._damage.examine, digest)

    @asynccontextmanager
    async def _exclusive(self, digest: str) -> AsyncIterator[None]:
        """Keep other operations on this digest waiting until the block ends."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            yield

    def _owner_of(self, name: str) -> str:
        return self._registry.ask(partial(owner_of, name=name)) or ""

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
