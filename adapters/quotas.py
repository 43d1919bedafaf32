"""Limits on what one owner may keep on the server. Knows the registry's tables; knows no keys."""

import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from .errors import QuotaExceeded
from .registry_reader import RegistryReader

# Of one owner: its names, and the bytes of its versions' files with those that can be restored, once for all versions
# that have the same files, as the disk holds them: a rollback costs none. Older releases kept the bytes in device
# memory only.
_SIZE = "coalesce(json_extract(facts, '$.file_bytes'), json_extract(facts, '$.num_bytes'))"
_USED = f"""
SELECT (SELECT count(DISTINCT name) FROM versions WHERE owner = ?1), ifnull(sum(size), 0) FROM (
    SELECT max(size) AS size FROM (
        SELECT digest, {_SIZE} AS size FROM versions WHERE owner = ?1
        UNION ALL SELECT digest, {_SIZE} FROM deleted WHERE owner = ?1
    ) GROUP BY digest
)
"""


class Used(NamedTuple):
    """What an owner has: names of adapters, and bytes of the files of all their versions together."""

    adapters: int
    num_bytes: int


@dataclass(frozen=True)
class Quota:
    """The most that one owner may have. 0: no limit."""

    max_adapters: int = 0
    max_bytes: int = 0

    @property
    def is_set(self) -> bool:
        return bool(self.max_adapters or self.max_bytes)

    def check(self, db: sqlite3.Connection, owner: str) -> None:
        """Raise QuotaExceeded if an owner has too much now, inside the transaction that adds something."""
        if self.is_set:
            self._compare(Used(*db.execute(_USED, (owner,)).fetchone()))

    def check_upload(self, registry: RegistryReader, owner: str, name: str | None, num_bytes: int) -> None:
        """Raise QuotaExceeded if an upload will be too much, before it is received.

        name: None where it is not known yet. num_bytes: at least so many bytes of files come.
        """
        if not self.is_set:
            return
        used = Used(*registry.read(_USED, (owner,))[0])
        is_new = name is not None and registry.find(name) is None
        self._compare(Used(used.adapters + is_new, used.num_bytes + num_bytes))

    def _compare(self, used: Used) -> None:
        for what, number, most in (
            ("adapters", used.adapters, self.max_adapters),
            ("bytes of adapters' files", used.num_bytes, self.max_bytes),
        ):
            if most and number > most:
                raise QuotaExceeded(
                    f"with this upload there would be {number} {what} of this key, and {most} are allowed; delete some "
                    "first (with ?purge=true where deleted ones are kept)",
                )
