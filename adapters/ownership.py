"""Who may see and change which names of adapters and routes.

A name belongs to the owner of its versions. An owner is a tenant, whose names nobody else sees, or anybody else:
administrators, and the server itself, whose names everybody sees and uses. Knows the registry's tables; knows no keys.
"""

import sqlite3
from dataclasses import dataclass, field

from .errors import AdapterForbidden, AdapterNotFound, NameTaken
from .names import Reference
from .quotas import Quota
from .registry_reader import not_found

_TENANT = "tenant:"
PRIVATE = f"substr(owner, 1, {len(_TENANT)}) = '{_TENANT}'"
"""A condition on a row: whether it is a tenant's own."""
# A name that is given up keeps its owner as long as it can be restored.
_OWNER = """
SELECT owner FROM (
    SELECT owner, 1 AS place, version FROM versions WHERE name = ?1
    UNION ALL SELECT owner, 1, version FROM documents WHERE kind = 'route' AND name = ?1
    UNION ALL SELECT owner, 2, version FROM deleted WHERE name = ?1
) ORDER BY place, version DESC LIMIT 1
"""


def private_owner(tenant: str) -> str:
    """Return the owner that stands for a tenant."""
    return _TENANT + tenant


def is_private(owner: str) -> bool:
    return owner.startswith(_TENANT)


def tenant_of(owner: str) -> str | None:
    """Return the tenant for which an owner stands; None for everybody's."""
    return owner[len(_TENANT) :] if is_private(owner) else None


def owner_of(db: sqlite3.Connection, name: str) -> str | None:
    """Return whose a name is; None if it is nobody's, as it stands for nothing."""
    row = db.execute(_OWNER, (name,)).fetchone()
    return None if row is None else str(row[0])


@dataclass(frozen=True)
class Actor:
    """One who sees and changes adapters. Methods that take a connection run inside the change's transaction.

    owner: of what it adds. shared: tenants have their adapters in common. quota: of what it may keep.
    name: tells it from others. adds_to_tenants: adds versions to tenants' names, for them.
    """

    owner: str = ""
    is_admin: bool = True
    shared: bool = False
    quota: Quota = field(default_factory=Quota)
    name: str = ""
    adds_to_tenants: bool = True

    @property
    def sees_all(self) -> bool:
        return self.is_admin or self.shared

    def sees(self, owner: str) -> bool:
        """Return whether a name of this owner exists for it."""
        return self.sees_all or owner == self.owner or not is_private(owner)

    def changes(self, owner: str) -> bool:
        """Return whether it may change a name of this owner."""
        return self.is_admin or owner == self.owner or (self.shared and is_private(owner))

    def check_change(
        self, db: sqlite3.Connection, reference: Reference, missing: AdapterNotFound | None = None
    ) -> None:
        """Check that it may change or delete a name, if there is one. Raises AdapterNotFound, AdapterForbidden.

        missing: what is said where there is none.
        """
        owner = owner_of(db, reference.name)
        if owner is None:
            return
        if not self.sees(owner):
            raise missing or not_found(reference)
        self._check(owner, reference.name)

    def claim(self, db: sqlite3.Connection, name: str) -> str:
        """Return whose a name is to be that it adds something to: one that exists stays its owner's.

        Raises NameTaken for another tenant's, which says no more; AdapterForbidden for one that it may only use.
        """
        owner = owner_of(db, name)
        if owner is None:
            return self.owner
        if not self.sees(owner) or (is_private(owner) and not self.adds_to_tenants):
            raise NameTaken(f"the name {name!r} is taken; choose another", param="name")
        self._check(owner, name)
        return owner

    def check_admin(self, what: str) -> None:
        """Raise AdapterForbidden unless it may do what only administrators may."""
        if not self.is_admin:
            raise AdapterForbidden(f"this key may not {what}: that takes one of the role admin")

    def _check(self, owner: str, name: str) -> None:
        if not self.changes(owner):
            raise AdapterForbidden(
                f"this key may use {name!r} and not change it: that takes one of the role admin", param="name"
            )


SERVER = Actor(name="server", adds_to_tenants=False)
"""Who acts where nobody has asked: the command line, the watched folder, the clock."""
