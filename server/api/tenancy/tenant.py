"""Who asks: whoever has a key, or the client's address where no key is asked for."""

import hashlib
import ipaddress
from dataclasses import dataclass, field

from peftserve.adapters.ownership import Actor, private_owner
from peftserve.adapters.quotas import Quota

SHOWN_DIGITS = 12  # of a key's digest


@dataclass(frozen=True)
class Tenant:
    """One who asks, as all parts of the server see it.

    name: tells it from others, for shares. owner: of what it adds, and the salt of its pages: `""` is nobody's.
    shown: in logs and metrics; `""` where it has no key. weight: its share of the engine while others wait too.
    max_queued: most of its sequences in flight; None: as many as there is room for. tokens_per_minute: of prompts and
    answers; 0: any number. quota: of what it may keep.
    """

    name: str = ""
    owner: str = ""
    shown: str = ""
    is_admin: bool = True
    weight: float = 1.0
    max_queued: int | None = None
    tokens_per_minute: int = 0
    quota: Quota = field(default_factory=Quota)

    def actor(self, shared: bool) -> Actor:
        """Return it as one who sees and changes adapters. shared: those of all tenants."""
        return Actor(self.owner, self.is_admin, shared, self.quota, self.name)


SERVER = Tenant()
"""The server itself."""
ANYONE = Tenant("anyone", is_admin=False)
"""Whoever asks without a key what everybody may."""


@dataclass(frozen=True)
class TenantLimits:
    """What an entry of the file of keys says of its tenant. None: nothing, and the server's own limit holds."""

    weight: float | None = None
    max_queued: int | None = None
    tokens_per_minute: int | None = None
    max_adapters: int | None = None
    max_adapter_bytes: int | None = None


def of_file(name: str, is_admin: bool, limits: TenantLimits, quota: Quota) -> Tenant:
    """Return a tenant of a file of keys. quota: the server's own."""
    max_adapters = quota.max_adapters if limits.max_adapters is None else limits.max_adapters
    max_bytes = quota.max_bytes if limits.max_adapter_bytes is None else limits.max_adapter_bytes
    return Tenant(
        name=f"tenant {name}",
        owner=f"admin:{name}" if is_admin else private_owner(name),
        shown=name,
        is_admin=is_admin,
        weight=1.0 if limits.weight is None else limits.weight,
        max_queued=limits.max_queued,
        tokens_per_minute=limits.tokens_per_minute or 0,
        quota=Quota(max_adapters, max_bytes),
    )


def of_key(key: bytes, quota: Quota) -> Tenant:
    """Return who has a key that is by itself: it may do all, and has a share and a quota of its own."""
    owner = hashlib.sha256(key).hexdigest()[:32]
    return Tenant(f"key {owner}", owner, owner[:SHOWN_DIGITS], quota=quota)


def of_address(address: str, quota: Quota) -> Tenant:
    """Return who asks without a key: an address, of IPv6 the network of 64 bits, whose owner has all of it."""
    return Tenant(f"address {_network(address)}", quota=quota)


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(ip) >> 64 << 64, 64)))
