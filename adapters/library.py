"""The life of adapters on the server: upload, inspection, commit, version, deletion, and the races between them.

The one place that orders files, rows and leases:
  - a row is written after its files are in the store, and deleted before they leave it;
  - files leave when no row and no running request uses their digest;
  - of two operations on one digest, the second waits.
So a kill leaves at most files without a row, which the registry has marked as disposable: the next start deletes them
(`recovery`). Files that are damaged leave too, and their rows stay. Knows no HTTP and no torch.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar
from weakref import WeakValueDictionary

from .errors import AdapterConflict, InvalidAdapter, prefix_errors
from .facts import AdapterFacts
from .files import WEIGHTS, experts_of
from .names import VersionRef, check_name
from .peft.config import read_config
from .recovery import FILES_GONE
from .registry import AdapterRegistry
from .registry_reader import AdapterRecord
from .safetensors_header import read_header
from .staging import StagedUpload
from .store import AdapterStore

logger = logging.getLogger(__name__)

Inspect = Callable[[str, Path], Awaitable[AdapterFacts]]
Release = Callable[[str], Awaitable[None]]
_T = TypeVar("_T")


class _Addition(NamedTuple):
    """A version about to be registered. See `AdapterLibrary.add`."""

    name: str
    facts: AdapterFacts
    origin: Mapping[str, Any]
    owner: str
    only_if_new: bool


class Holders(Protocol):
    """The requests that hold adapters: `Leases`, or those of several processes together."""

    async def idle(self, digest: str) -> None:
        """Wait until no request holds an adapter. Another may take it right after, unless no row refers to it."""

    async def is_held(self, digest: str) -> bool:
        """Return whether any request holds an adapter."""


class AdapterLibrary:
    """All operations on the adapters of a server. Methods run on one event loop; disk work goes to threads.

    inspect: compiles the adapter with a digest, in a folder, against the base; raises AdapterError.
    release: gives the adapter's memory back in the engine.
    reserved: names that no adapter may take: the base's id and routes.
    lost: versions whose files are missing.
    damaged: digest to what is wrong, for the versions that cannot be served until their files are uploaded again.
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
    ) -> None:
        self._store = store
        self._registry = registry
        self._holders = holders
        self._inspect = inspect
        self._release = release
        self._reserved = reserved
        self.damaged: dict[str, str] = {ref.digest: FILES_GONE for ref in lost}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def add(
        self,
        staged: StagedUpload,
        name: str,
        *,
        origin: Mapping[str, Any] | None = None,
        owner: str = "",
        only_if_new: bool = False,
    ) -> AdapterRecord:
        """Check a complete upload and register it as the newest version of `name`. The upload is used up in any case.

        origin: where it came from, for its card. owner: the tenant that adds it.
        only_if_new: if the newest version has the same content, return that one and make no other; for adapters that
            are named on the command line at every start.
        Raises AdapterError, and then nothing is registered.
        """
        with staged:
            self.check_name(name)
            digest = staged.digest
            await asyncio.to_thread(_check_files, staged.path, staged.experts)
            facts = await self._inspect(digest, staged.path)
            # From here on a client that leaves must neither stop the work nor delete the files under it.
            addition = _Addition(name, facts, origin or {}, owner, only_if_new)
            return await asyncio.shield(self._spawn(self._register(staged.hand_over(), addition)))

    def check_name(self, name: str) -> None:
        """Raise InvalidAdapter or AdapterConflict for a name that no adapter may have."""
        check_name(name, self._reserved)
        if self._registry.is_route(name):
            raise AdapterConflict(f"there is a route {name!r}; choose another name", param="name")

    async def roll_back(self, name: str, to: int | None = None) -> AdapterRecord:
        """Make an older version's content the newest again, as a version of its own; return it.

        to: the version; None for the one before the newest. Raises AdapterNotFound.
        """
        return await asyncio.shield(self._spawn(self._roll_back(name, to)))

    async def delete(self, name: str, version: int | None = None, *, force: bool = True) -> list[VersionRef]:
        """Remove a name, or one version of it; return what was removed, once no new request can get it.

        Running requests keep it; files and memory are given back in the background when the last of them ends. A
        default that loses its last version becomes the bare base.

        force: also if a route names it. Raises AdapterNotFound, AdapterConflict.
        """
        return await asyncio.shield(self._spawn(self._delete(name, version, force)))

    async def set_default(self, name: str | None) -> None:
        """Set the server's default; requests admitted before keep what they have. Raises AdapterNotFound."""
        await asyncio.to_thread(self._registry.set_default, name)

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
        record = self._registry.get(name, to) if to is not None else self._registry.before_newest(name)
        async with self._exclusive(record.digest):  # no deletion of it ends meanwhile
            self._registry.get(name, record.version)
            origin = {"kind": "rollback", "version": record.version}
            return await asyncio.to_thread(
                self._registry.add, name, record.digest, record.facts, origin=origin, owner=record.owner
            )

    async def _delete(self, name: str, version: int | None, force: bool) -> list[VersionRef]:
        had_default = self._registry.get_default() is not None
        removed = await asyncio.to_thread(partial(self._registry.delete, name, version, force=force))
        if had_default and self._registry.get_default() is None:
            logger.warning("The default adapter, %s, was deleted: the bare base answers for it now", name)
        for digest in {ref.digest for ref in removed}:
            self._spawn(self._collect(digest))
        return removed

    async def _register(self, staged: StagedUpload, addition: "_Addition") -> AdapterRecord:
        async with self._exclusive(staged.digest):
            try:
                return await asyncio.to_thread(self._commit, staged, addition)
            finally:
                # Files without a row, if that is what is left, must not wait for the next start.
                if not self._registry.in_use(staged.digest):
                    self._spawn(self._collect(staged.digest))

    def _commit(self, staged: StagedUpload, addition: "_Addition") -> AdapterRecord:
        with staged:
            self._registry.mark_disposable(staged.digest)
            digest = self._store.commit(staged)
            self._set_damaged(digest, None)
        newest = self._registry.find(addition.name) if addition.only_if_new else None
        if newest is not None and newest.digest == digest:
            return newest
        return self._registry.add(addition.name, digest, addition.facts, origin=addition.origin, owner=addition.owner)

    async def _collect(self, digest: str) -> None:
        """Remove an adapter from memory and disk if nothing refers to it any more."""
        await self._holders.idle(digest)
        async with self._exclusive(digest):
            # No row, then no request can come to it; a row of the same content may have come back meanwhile.
            if self._registry.in_use(digest) or await self._holders.is_held(digest):
                return
            try:
                await self._release(digest)
            except Exception:
                logger.exception("the engine did not release adapter %s", digest)
            await asyncio.to_thread(self._remove_files, digest)

    def _remove_files(self, digest: str) -> None:
        self._store.remove(digest)
        self._registry.unmark_disposable(digest)
        self._set_damaged(digest, None)

    async def _examine(self, digest: str) -> None:
        async with self._exclusive(digest):
            if not self._registry.in_use(digest):
                return
            try:
                whole = await asyncio.to_thread(self._store.is_whole, digest)
            except OSError as error:  # says nothing of the files' content
                logger.error("The files of adapter %s cannot be read: %s", digest, error)
            else:
                if not whole:
                    await asyncio.to_thread(self._quarantine, digest)

    def _quarantine(self, digest: str) -> None:
        refs = ", ".join(str(ref) for ref in self._registry.refs() if ref.digest == digest)
        if self._store.has(digest):
            place = self._store.quarantine(self._store.path(digest))
            what = "its files on the server's disk are damaged"
            logger.error("The files of %s are damaged and lie in %s now: upload the same files again", refs, place)
        else:
            what = FILES_GONE
            logger.error("The files of %s are gone: upload the same files again", refs)
        self._set_damaged(digest, what)

    def _set_damaged(self, digest: str, reason: str | None) -> None:
        if self.damaged.get(digest) == reason:
            return
        self._registry.set_damaged(digest, reason)
        if reason is None:
            del self.damaged[digest]
        else:
            self.damaged[digest] = reason

    @asynccontextmanager
    async def _exclusive(self, digest: str) -> AsyncIterator[None]:
        """Keep other operations on this digest waiting until the block ends."""
        lock = self._locks.setdefault(digest, asyncio.Lock())
        async with lock:
            yield

    def _spawn(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _check_files(folder: Path, experts: Sequence[str]) -> None:
    """Check what needs neither the model nor torch, before the engine is asked. Raises AdapterError."""
    for part in ("", *experts):
        with prefix_errors(part):
            read_header(folder / part / WEIGHTS)
            read_config(folder / part)
    named = experts_of(folder)
    for expert in sorted({*named, *experts}):
        if expert not in experts or expert not in named:
            what = "is not there" if expert in named else "is none of arrow_config's"
            raise InvalidAdapter(f"the expert {expert} {what}; send the files of all that it names", param="files")
