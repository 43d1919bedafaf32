"""Which addresses a request may make the server connect to: those of the public internet, unless all are allowed.

A client that names a host could otherwise reach what only the server can: its own ports, its network, and the
metadata of its cloud, also by a name of its own that leads there.
"""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from .place import SourceFailed, SourceMissing

MAX_ADDRESSES = 4  # of one host, tried in turn
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))


async def addresses_of(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Look up a host, and return addresses to connect to. Raises SourceFailed if any of them is not allowed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise SourceMissing(f"The host {host[:253]!r} is not known.") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(map(is_public, addresses)):
        raise SourceFailed(f"The host {host[:253]!r} is not on the public internet (--allow-private-sources).")
    return addresses[:MAX_ADDRESSES]


def is_public(text: str) -> bool:
    """Return whether an address is one host's on the public internet, and so is an IPv4 address inside of it."""
    try:
        address = ip_address(text)
    except ValueError:  # with a zone, and so of this link
        return False
    return all(_is_one_hosts(each) for each in (address, *_inside(address)))


def _is_one_hosts(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and (address.is_site_local or address in _NAT64[1]):
        return False
    if isinstance(address, IPv6Address) and (address.ipv4_mapped is not None or address in _NAT64[0]):
        return True  # what is inside decides
    return address.is_global and not address.is_multicast and not address.is_reserved


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses to which an IPv6 address may lead."""
    if isinstance(address, IPv4Address):
        return []
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64[0]:
        inside.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [each for each in inside if each is not None]
