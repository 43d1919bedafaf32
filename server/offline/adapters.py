"""Adapters by name, for one engine in this process: registered from folders, looked up as a server's requests do."""

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from peftserve.adapters.errors import AdapterNotFound
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import Reference, VersionRef, check_name
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.resolved import Resolved
from peftserve.adapters.router import Router
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore

from ..engine.engine import Engine

Adapter = str | Mapping[str, float] | None
"""Who answers: an adapter's name, `name@version`, a mixture's names and weights, or None for the bare base."""


class NamedAdapters:
    """The names of one `LLM`. They last as long as it does.

    store: keeps a copy of the files, so that what lies in the caller's folder may change afterwards.
    base_id: the name that means the bare base.
    """

    def __init__(self, engine: Engine, store: AdapterStore, base_id: str) -> None:
        self._engine = engine
        self._store = store
        self._base_id = base_id
        self._versions: dict[str, list[AdapterRecord]] = {}
        self._router = Router(self, base_id)

    def add(self, name: str, folder: Path) -> AdapterRecord:
        """Register the adapter in a folder as the newest version of `name`. Raises AdapterError."""
        check_name(name, {self._base_id})
        with self._store.stage(limit=sys.maxsize) as staged:
            staged.copy_folder(folder)
            facts = self._inspect(staged)
            digest = self._store.commit(staged)
        versions = self._versions.setdefault(name, [])
        versions.append(AdapterRecord(VersionRef(name, len(versions) + 1, digest), time.time(), facts))
        return versions[-1]

    def remove(self, name: str) -> None:
        """Forget all versions of a name, and give their memory back. Raises AdapterNotFound."""
        removed = self._versions.pop(name, None)
        if removed is None:
            raise AdapterNotFound(f"there is no adapter {name[:140]!r}")
        for digest in {record.digest for record in removed} - {record.digest for record in self._records()}:
            self._engine.release_adapter(digest)
            self._store.remove(digest)

    def names(self) -> list[str]:
        return list(self._versions)

    def resolve(self, adapter: Adapter) -> Resolved:
        """Return who answers. Raises AdapterNotFound, InvalidAdapter."""
        if isinstance(adapter, Mapping):
            return self._router.resolve(None, list(adapter.items()))
        return self._router.resolve(self._base_id if adapter is None else adapter)

    def find(self, name: str, version: int | None = None) -> AdapterRecord | None:
        """Return the newest version of a name, or the given one; None if there is no such."""
        versions = self._versions.get(name, [])
        return next((record for record in reversed(versions) if version in (None, record.version)), None)

    def get_default(self) -> Reference | None:
        """Return None: without a server, there is no default but the base."""
        return None

    def is_damaged(self, digest: str) -> bool:
        """Return False: damaged files are an error at once, where they are read."""
        return False

    def snapshot(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: nobody changes names meanwhile."""
        return nullcontext()

    def _inspect(self, staged: StagedUpload) -> AdapterFacts:
        """Compile the adapter, unless one of the same content is there. Raises AdapterError."""
        known = next((record.facts for record in self._records() if record.digest == staged.digest), None)
        return known or self._engine.inspect_adapter(staged.digest, staged.path)

    def _records(self) -> list[AdapterRecord]:
        return [record for versions in self._versions.values() for record in versions]
