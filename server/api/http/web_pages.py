"""Requests that a web page makes a browser send: only those of the server's own pages, and of origins that are allowed.

A browser sends a page's requests to any address, this machine's own too, and says whose they are in `Origin`; a program
says nothing there. A page whose name is made to lead to this machine (DNS rebinding) has the server's own origin, but
not its name: where everybody who reaches the server is let in, the `Host` must be a name of this machine.
Knows headers and addresses; what other origins are told is for `cors.py`.
"""

import ipaddress
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import ApiError, error_response

ANY = "*"
_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a page is from, as browsers compare it. port: also where an address leaves it out."""

    scheme: str
    host: str
    port: int | None


@dataclass(frozen=True)
class PageRules:
    """Whose pages may ask.

    origins: as `--allow-origins` has them, in lower case; `*`: any. hosts: names by which the server may be asked; None
    for any. proxies: addresses and networks of those whose `X-Forwarded-Host` and `X-Forwarded-Proto` are believed.
    """

    origins: tuple[str, ...] = ()
    hosts: frozenset[str] | None = None
    proxies: tuple[str, ...] = ()

    def check(self, headers: Headers, scheme: str, client: str) -> None:
        """Raise ApiError 403 for a request of a page that may not ask. client: the address that it comes from."""
        for host in headers.getlist("host") if self.hosts is not None else ():
            if host and not is_named(host, self.hosts or ()):
                raise _wrong_host(host)
        origins = headers.getlist("origin")
        own = self._own(headers, scheme, client) if origins else None
        for origin in origins:
            if not self._allows(origin, own):
                raise _wrong_origin(origin)

    def _allows(self, text: str, own: Origin | None) -> bool:
        if ANY in self.origins or text.lower() in self.origins:
            return True
        origin = parse_origin(text)
        return origin is not None and origin == own

    def _own(self, headers: Headers, scheme: str, client: str) -> Origin | None:
        """Return the server's origin as its client sees it."""
        hosts = headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        if is_among(client, self.proxies):
            scheme = _first(headers.get("x-forwarded-proto")) or scheme
            host = _first(headers.get("x-forwarded-host")) or host
        return parse_origin(f"{scheme}://{host}")


class WebPages:
    """A middleware that refuses pages' requests by the rules, whatever they ask, before anything is read of them."""

    def __init__(self, app: ASGIApp, rules: PageRules) -> None:
        self._app = app
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                client = scope["client"]
                self._rules.check(Headers(scope=scope), scope["scheme"], client[0] if client else "")
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def own_hosts(bound: str, allowed: Collection[str]) -> frozenset[str] | None:
    """Return the names for `PageRules.hosts` of a server that listens at `bound`; None where that is no loopback."""
    if ANY in allowed or not is_loopback(bound):
        return None
    return frozenset({_bare(bound), *map(_bare, allowed)})


def is_loopback(bound: str) -> bool:
    """Return whether a server that listens at this name or address is reached from its own machine only."""
    if _is_loopback_name(_bare(bound)):
        return True
    try:
        found = socket.getaddrinfo(bound, None, type=socket.SOCK_STREAM) if bound else []
    except (OSError, UnicodeError):
        return False  # as it cannot be listened at
    return bool(found) and all(_is_loopback_name(str(address[0])) for *_, address in found)


def is_named(host: str, names: Collection[str]) -> bool:
    """Return whether a `Host` is a name of the loopback or one of `names`: `*.example` is all below it."""
    parsed = parse_origin(f"http://{host}")
    if parsed is None:
        return False
    _, _, above = parsed.host.partition(".")
    return _is_loopback_name(parsed.host) or parsed.host in names or (bool(above) and f"*.{above}" in names)


def parse_origin(text: str) -> Origin | None:
    """Return the origin that a header names; None for `null` and for what is none."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not parts.scheme or not host or "@" in parts.netloc or parts.path or parts.query or parts.fragment:
        return None
    return Origin(parts.scheme, _bare(host), _PORTS.get(parts.scheme) if port is None else port)


def is_among(client: str, networks: Sequence[str]) -> bool:
    """Return whether an address is one of those, or in one of those networks; `*`: any, a Unix socket's too."""
    if ANY in networks:
        return True
    try:
        address = _plain(ipaddress.ip_address(client))
    except ValueError:
        return False
    return any(address in ipaddress.ip_network(network, strict=False) for network in networks)


def _bare(host: str) -> str:
    return host.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _is_loopback_name(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761: browsers ask no one where that is
        return True
    try:
        return _plain(ipaddress.ip_address(host)).is_loopback
    except ValueError:
        return False


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address as IPv4 where it is one in the form of IPv6."""
    return getattr(address, "ipv4_mapped", None) or address


def _first(header: str | None) -> str:
    return (header or "").partition(",")[0].strip()


def _wrong_origin(origin: str) -> ApiError:
    message = (
        f"Web pages of the origin {origin[:200]!r} may not ask this server; --allow-origins names those that may, and "
        "programs send no Origin."
    )
    return ApiError(403, message, code="origin_not_allowed", headers={"Vary": "Origin"})


def _wrong_host(host: str) -> ApiError:
    message = (
        f"This server is not asked by the name {host[:200]!r}: it is for its own machine, as localhost; "
        "--allowed-hosts names others, and with keys any name does."
    )
    return ApiError(403, message, code="host_not_allowed")
