"""The moment at which an upload becomes a version: its files go to the store, then its row is written.

Runs on a thread; the caller keeps other operations on the digest away. Knows no requests and no engine.
"""

import sqlite3
from collections.abc import Mapping
from typing import Any, NamedTuple

from .damage import Damage
from .facts import AdapterFacts
from .ownership import Actor
from .registry import AdapterRegistry
from .registry_reader import AdapterRecord
from .staging import StagedUpload
from .store import AdapterStore
from .stored_settings import SettingsStore


class Addition(NamedTuple):
    """A version about to be registered. See `AdapterLibrary.add`. actor: who adds it."""

    name: str
    facts: AdapterFacts
    origin: Mapping[str, Any]
    actor: Actor
    only_if_new: bool
    settings: Mapping[str, Any]


class Additions:
    """The additions to one store and its registry."""

    def __init__(self, store: AdapterStore, registry: AdapterRegistry, damage: Damage, settings: SettingsStore) -> None:
        self._store = store
        self._registry = registry
        self._damage = damage
        self._settings = settings

    def commit(self, staged: StagedUpload, addition: Addition) -> tuple[AdapterRecord, bool]:
        """Store the files and register the version. Returns it, and whether it is a new one. Raises AdapterError."""
        with staged:
            self._registry.mark_disposable(staged.digest)
            digest = self._store.commit(staged)
            self._damage.mend(digest)
        name, facts, origin, actor, only_if_new, settings = addition
        newest = self._registry.find(name) if only_if_new else None
        if newest is not None and newest.digest == digest:
            return newest, False

        def within(db: sqlite3.Connection) -> None:
            change.uploaded(db, name, settings)
            if not only_if_new:
                actor.quota.check(db, actor.owner)

        with self._settings.changing() as change:
            return self._registry.add(name, digest, facts, origin=origin, actor=actor, within=within), True
