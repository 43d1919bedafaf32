"""TLS: what the server shows, and the beginning of a connection until both sides have agreed.

A connection takes its place among the others before its first byte, and the time for the agreement is that for the head
of a request: who connects and says nothing holds no more here than without TLS. Knows sockets; knows no HTTP.
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from .connections import OpenConnections, Place

DEFAULT_SECONDS = 60.0  # for an agreement, where a head may take for ever
FAILED = "tls"  # the reason by which connections without an agreement are counted

MakeProtocol = Callable[[], asyncio.Protocol]


@dataclass(frozen=True)
class TlsFiles:
    """The files of a server. certificate: with its chain. key: None where it is in the same file.

    authorities: of those who certify clients, which must show a certificate then; None for any client.
    """

    certificate: Path
    key: Path | None = None
    password: str | None = None
    authorities: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for TLS 1.2 and later. Raises OSError that names the files which do not do."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        password = self.password or ""
        try:
            # A function, or a key with a password would be asked for on the terminal.
            context.load_cert_chain(self.certificate, self.key, lambda: password)
        except OSError as error:
            files = f"--ssl-certfile {self.certificate}" + (f" and --ssl-keyfile {self.key}" if self.key else "")
            raise OSError(f"{files} cannot be used: {_why(error)}") from None
        if self.authorities is not None:
            try:
                context.load_verify_locations(self.authorities)
            except OSError as error:
                raise OSError(f"--ssl-ca-certs {self.authorities} cannot be used: {_why(error)}") from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


class TlsBeginning(asyncio.Protocol):
    """A connection until it is agreed on, when another protocol takes it over.

    make: returns that one. server_state: uvicorn's, which has all connections.
    """

    address = ""
    _lost = False
    _eof = False
    _transport: asyncio.Transport  # set by connection_made()
    _task: "asyncio.Task[None]"  # the same

    def __init__(
        self, context: ssl.SSLContext, connections: OpenConnections, make: MakeProtocol, server_state: Any
    ) -> None:
        self._context = context
        self._connections = connections
        self._make = make
        self._all = server_state.connections
        self._received: list[bytes] = []  # by the time that the other protocol is there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a place, and begin."""
        peer = transport.get_extra_info("peername")
        self.address = str(peer[0]) if isinstance(peer, tuple) else ""
        self._transport = transport
        if self._connections.enter(self) is Place.NONE:
            self._connections.count("connections")
            transport.abort()
            return
        transport.pause_reading()
        self._all.add(self)
        self._task = asyncio.get_running_loop().create_task(self._agree(transport), name="tls")

    async def _agree(self, transport: asyncio.Transport) -> None:
        try:
            secure = await self._start(transport)
        except (OSError, asyncio.CancelledError):  # errors of TLS and timeouts among them
            self._connections.count(FAILED)
            transport.abort()
            secure = None
        finally:
            self._all.discard(self)
            self._connections.leave(self)
        if secure is not None and not self._lost:
            self._hand_over(secure)

    async def _start(self, transport: asyncio.Transport) -> asyncio.Transport | None:
        """Return the transport of what both have agreed on. Raises OSError, also for what is no TLS and too late."""
        loop = asyncio.get_running_loop()
        seconds = self._connections.timeouts.headers or DEFAULT_SECONDS
        starting = loop.create_task(
            loop.start_tls(transport, self, self._context, server_side=True, ssl_handshake_timeout=seconds)
        )
        await asyncio.sleep(0)  # now another protocol reads what comes
        early, self._received = self._received, []  # uvloop reads at once, whether or not it was asked to pause
        if self._eof:
            transport.abort()
        elif early:
            protocol = cast(asyncio.BufferedProtocol, transport.get_protocol())
            loop.call_soon(_feed, protocol, b"".join(early))  # in the turn in which reading goes on
        try:
            return await starting
        finally:
            starting.cancel()

    def _hand_over(self, secure: asyncio.Transport) -> None:
        protocol = self._make()
        secure.set_protocol(protocol)
        protocol.connection_made(secure)
        for data in self._received:
            protocol.data_received(data)
        if self._eof and not protocol.eof_received():
            secure.close()

    def data_received(self, data: bytes) -> None:
        """Keep what came together with the end of the agreement."""
        self._received.append(data)

    def eof_received(self) -> bool:
        """Note that no more comes, and leave the closing to the other protocol."""
        self._eof = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that there is nothing to hand over."""
        self._lost = True

    def look(self, now: float) -> None:
        """Do nothing: the agreement has a timeout of its own."""

    def give_way(self) -> None:
        """Close, for another connection."""
        self._connections.count("idle")
        self.shutdown()

    def shutdown(self) -> None:
        """Close, as uvicorn asks of each connection at the end."""
        self._transport.abort()


def _feed(protocol: asyncio.BufferedProtocol, data: bytes) -> None:
    """Give bytes to a protocol as a transport does."""
    rest = memoryview(data)
    while rest:
        buffer = memoryview(protocol.get_buffer(len(rest)))
        number = min(len(buffer), len(rest))
        buffer[:number] = rest[:number]
        protocol.buffer_updated(number)
        rest = rest[number:]


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or str(error)
