"""Adapters from a folder of a web server: `https://host/folder`, whose two files have the names that PEFT gives them.

Only hosts that the operator allows are asked. Their names are looked up here and the connection goes to the address
that was checked, so a name that leads elsewhere a moment later gains nothing. Proxies of the environment are not used.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from peftserve.adapters.files import WEIGHTS
from peftserve.adapters.staging import StagedUpload

from ..http.threads import to_the_end
from .addresses import addresses_of
from .download import TIMEOUT, Download, Hop, tls_context
from .folder import receive_folder
from .place import Place, SourceFailed, SourceSettings, beside, check_path, refuse_revision, without_scheme

_PORTS = {"http": 80, "https": 443}


async def fetch_http(place: Place, staged: StagedUpload, settings: SourceSettings) -> str | None:
    """Fetch an adapter. Returns the tag of its weights, if there is one. Raises SourceFailed, AdapterError."""
    refuse_revision(place)
    base = _parse(place)
    guard = Guard(settings.hosts, settings.allow_private)
    tags: dict[str, str | None] = {}
    tls = await to_the_end(tls_context)
    # trust_env: a proxy would look the name up once more.
    async with httpx.AsyncClient(verify=tls, timeout=TIMEOUT, trust_env=False) as client:

        async def read(relative: str) -> AsyncGenerator[bytes]:
            path = quote(beside(base.path.strip("/"), relative))
            download = Download(client, base.copy_with(raw_path=_raw(path, base)), guard)
            async with aclosing(download.read()) as pieces:
                async for piece in pieces:
                    yield piece
            tags[relative] = download.tag

        await receive_folder(read, staged)
    return tags[WEIGHTS]


@dataclass(frozen=True)
class Guard:
    """A route that goes to allowed hosts only, and from one of them to no other."""

    hosts: Sequence[str]
    allow_private: bool

    async def __call__(self, url: httpx.URL, before: httpx.URL | None) -> list[Hop]:
        """Return the ways to the host's checked addresses. Raises SourceFailed."""
        self._check(url, before)
        port = url.port or _PORTS[url.scheme]
        addresses = await addresses_of(url.host, port, allow_private=self.allow_private)
        host = url.netloc.decode("ascii")
        return [Hop(url.copy_with(host=each), {"host": host}, {"sni_hostname": url.host}) for each in addresses]

    def _check(self, url: httpx.URL, before: httpx.URL | None) -> None:
        if url.scheme not in _PORTS or not url.host or url.userinfo:
            raise SourceFailed("The source redirects to another kind of address.")
        if before is not None and not _may_lead_to(before, url):
            raise SourceFailed("The source redirects to another host or port, which is not followed.")
        port = url.port or _PORTS[url.scheme]
        if not any(_is_meant(pattern.lower(), url.host, port) for pattern in self.hosts):
            raise SourceFailed(f"The host {url.host!r} is not one that this server gets adapters from.")


def _may_lead_to(before: httpx.URL, url: httpx.URL) -> bool:
    """Return whether a redirect stays with the host and its port, or goes on to the host's https."""
    return url.host == before.host and (
        (url.scheme, url.port) == (before.scheme, before.port) or (before.scheme, url.scheme) == ("http", "https")
    )


def _is_meant(pattern: str, host: str, port: int) -> bool:
    """Return whether a host is one of the allowed: `name`, `name:port`, `*.domain` or `*`."""
    name, colon, number = pattern.rpartition(":")
    if colon and number.isdigit() and (":" not in name or name.endswith("]")):
        if port != int(number):
            return False
        pattern = name
    pattern, host = pattern.strip("[]").rstrip("."), host.rstrip(".")
    return pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def _parse(place: Place) -> httpx.URL:
    """Return the folder's address. Raises SourceFailed."""
    without_scheme(place)
    try:
        url = httpx.URL(place.uri)
    except (httpx.InvalidURL, ValueError):
        raise SourceFailed("The source's address is malformed.") from None
    if url.scheme not in _PORTS or not url.host:
        raise SourceFailed("A source of type 'http' is the address of a folder: https://host/folder.")
    if url.userinfo:
        raise SourceFailed("The source's address may hold no name and password.")
    check_path(url.path)
    return url.copy_with(fragment=None)


def _raw(path: str, base: httpx.URL) -> bytes:
    """Return path and query: what a folder's address has behind `?` is sent with each of its files."""
    return f"/{path}".encode() + (b"?" + base.query if base.query else b"")
