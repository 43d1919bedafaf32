"""uvicorn as an API process runs it, and what the system grants it: listening sockets and open files."""

import asyncio
import contextlib
import functools
import logging
import resource
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from .connections import OpenConnections
from .protocol import HttpProtocol
from .tls import TlsBeginning

BACKLOG = 2048
CLOSING_SECONDS = 5  # for answers on their way out after the engine has stopped
OTHER_FILES = 256  # descriptors, for all else that a process opens
FILES_PER_CONNECTION = 2  # a request that is passed on takes a second connection

logger = logging.getLogger(__name__)


class HttpServer(uvicorn.Server):
    """uvicorn's server without its handling of signals, which closes the port before the grace time.

    connections: the open connections with their limits; None for the defaults. tls: for connections by TLS only.
    private: what listens is the socket between the processes, without limits.
    """

    def __init__(
        self,
        app: ASGIApp,
        connections: OpenConnections | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        private: bool = False,
    ) -> None:
        self._connections = connections or OpenConnections()
        self._tls = tls
        self._private = private
        super().__init__(
            uvicorn.Config(
                app,
                http=self._protocol,  # type: ignore[arg-type]
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                proxy_headers=False,  # nobody asks who the client is
            )
        )

    def _protocol(self, **uvicorns: Any) -> asyncio.Protocol:
        """Return the protocol of a new connection. uvicorns: what uvicorn gives to its own."""
        make = functools.partial(HttpProtocol, self._connections, private=self._private, **uvicorns)
        if self._tls is None:
            return make()
        return TlsBeginning(self._tls, self._connections, make, uvicorns["server_state"])

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these sockets until `close`, and look at the connections meanwhile."""
        watching = asyncio.create_task(self._connections.watch(), name="connections")
        try:
            await super().serve(sockets)
        finally:
            watching.cancel()
            await asyncio.wait({watching})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals as they are."""
        yield

    async def close(self, serving: "asyncio.Task[None]", patience: float = CLOSING_SECONDS) -> None:
        """End the server. serving: the task that runs `serve`.

        Requests have been ended with an error by now; their answers have `patience` seconds to leave.
        """
        self.should_exit = True
        await asyncio.wait({serving}, timeout=patience)
        self.force_exit = True
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()  # of a client that reads nothing, or still sends
        await serving


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening socket. Raises OSError, which tells of a port in use before a model is loaded.

    shared: other processes of this server listen on the port too, each with a socket of its own, between which the
    kernel divides the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=shared)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def check_free(host: str, port: int) -> None:
    """Raise OSError if any process listens on the port, even one that would share it."""
    listen(host, port).close()


def raise_file_limit(connections: int) -> int:
    """Let this process open as many connections as wanted, as far as the system does; 0 is no limit.

    Returns how many there is room for; 0 if as many as the system gives were wanted.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OTHER_FILES + FILES_PER_CONNECTION * connections
    if soft == resource.RLIM_INFINITY or (connections and soft >= wanted):
        return connections
    if not connections:
        wanted = max(soft, hard)
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = max(1, (soft - OTHER_FILES) // FILES_PER_CONNECTION)
    if room < connections:
        logger.warning("The system's limit on open files (%d) allows for %d connections only", soft, room)
    return min(room, connections) if connections else 0
