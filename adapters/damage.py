"""Adapters whose files are not what was stored: found, set aside, and noted, so that requests are told why.

The caller sees to it that nothing else happens to a digest meanwhile. Knows the store and the registry.
"""

import logging
from collections.abc import Iterable

from .names import VersionRef
from .recovery import FILES_GONE
from .registry import AdapterRegistry
from .store import AdapterStore

logger = logging.getLogger(__name__)


class Damage:
    """What is damaged. lost: versions whose files are missing at the start. reasons: digest to what is wrong."""

    def __init__(self, store: AdapterStore, registry: AdapterRegistry, lost: Iterable[VersionRef] = ()) -> None:
        self._store = store
        self._registry = registry
        self.reasons: dict[str, str] = {ref.digest: FILES_GONE for ref in lost}

    def examine(self, digest: str) -> None:
        """Read all files of an adapter, and quarantine them if they are not whole."""
        try:
            whole = self._store.is_whole(digest)
        except OSError as error:  # says nothing of the files' content
            logger.error("The files of adapter %s cannot be read: %s", digest, error)
        else:
            if not whole:
                self._quarantine(digest)

    def mend(self, digest: str) -> None:
        """Note that an adapter's files are whole, or that it has gone."""
        self._set(digest, None)

    def _quarantine(self, digest: str) -> None:
        refs = ", ".join(map(str, self._registry.refs_of(digest)))
        if self._store.has(digest):
            place = self._store.quarantine(self._store.path(digest))
            what = "its files on the server's disk are damaged"
            logger.error("The files of %s are damaged and lie in %s now: upload the same files again", refs, place)
        else:
            what = FILES_GONE
            logger.error("The files of %s are gone: upload the same files again", refs)
        self._set(digest, what)

    def _set(self, digest: str, reason: str | None) -> None:
        if self.reasons.get(digest) == reason:
            return
        self._registry.set_damaged(digest, reason)
        if reason is None:
            del self.reasons[digest]
        else:
            self.reasons[digest] = reason
