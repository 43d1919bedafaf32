"""Deletions of versions in the registry, for good or with a way back, and that way.

Each method is one change, or several of which the next start finishes what a kill leaves. Knows no files of adapters.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from functools import partial

from . import trash
from .errors import AdapterError, AdapterNotFound
from .keeping import Keeping
from .names import Reference, VersionRef
from .ownership import SERVER, Actor
from .registry import AdapterRegistry, Within
from .registry_reader import AdapterRecord
from .stored_settings import SettingsStore

logger = logging.getLogger(__name__)


class Removal:
    """The deletions of one library. Methods take their time on the disk."""

    def __init__(self, registry: AdapterRegistry, settings: SettingsStore, keeping: Keeping) -> None:
        self._registry = registry
        self._settings = settings
        self._keeping = keeping

    def remove(
        self, reference: Reference, force: bool, purge: bool, within: Within | None, actor: Actor = SERVER
    ) -> tuple[list[VersionRef], list[VersionRef]]:
        """Delete a name or a version. Returns what was there, and what of it could have been restored until now.

        See `AdapterLibrary.delete`. Raises AdapterNotFound, AdapterConflict, AdapterForbidden.
        """

        def allowed(db: sqlite3.Connection) -> None:
            actor.check_change(db, reference)
            if within is not None:
                within(db)

        is_kept = self._keeping.deleted > 0 and not purge
        keep_until = time.time() + self._keeping.deleted if is_kept else None
        removed: list[VersionRef] = []
        missing: AdapterNotFound | None = None
        try:
            removed = self._registry.delete(*reference, force=force, keep_until=keep_until, within=allowed)
        except AdapterNotFound as error:
            missing = error
        discarded = self._discard(partial(self._give_up, reference, actor)) if purge else []
        if missing is not None and not discarded:
            raise missing
        if not is_kept:
            self._forget_settings(reference.name)
        return removed, discarded

    def discard_overdue(self) -> list[VersionRef]:
        """Give up the deleted versions whose time is over. Returns them."""
        return self._discard(lambda db: trash.discard_overdue(db, time.time()))

    def take_back(self, reference: Reference, actor: Actor = SERVER) -> list[AdapterRecord]:
        """Bring deleted versions back. Raises AdapterNotFound, AdapterConflict, AdapterForbidden, QuotaExceeded."""

        def work(db: sqlite3.Connection) -> list[AdapterRecord]:
            actor.check_change(db, reference, trash.nothing_of(reference))
            records = trash.take_back(db, reference, time.time())
            change.renew(db, reference.name)  # or the end of its time would delete it again
            actor.quota.check(db, actor.owner)
            return records

        with self._settings.changing() as change:
            return self._registry.insert(work)

    def _forget_settings(self, name: str) -> None:
        """Delete the settings of a name that is gone. Where that fails the deletion has been made all the same."""
        try:
            self._settings.forget(name)
        except (AdapterError, OSError, sqlite3.Error) as error:
            logger.warning("The settings of %s, which was deleted, stay until the next start (%s)", name, error)

    @staticmethod
    def _give_up(reference: Reference, actor: Actor, db: sqlite3.Connection) -> list[VersionRef]:
        actor.check_change(db, reference)
        return trash.discard(db, reference)

    def _discard(self, discard: Callable[[sqlite3.Connection], list[VersionRef]]) -> list[VersionRef]:
        with self._registry.transaction() as db:
            discarded = discard(db)
        for name in {ref.name for ref in discarded}:
            self._forget_settings(name)
        return discarded
