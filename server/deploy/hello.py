"""The first message on a connection of a replica's engine: that it is one of ours, and which.

The rest of the connection is the engine's own (`server/wire/messages.py`). Knows sockets and bytes; does not know
engines.
"""

import asyncio
import hmac
import socket
import struct

import msgspec

from ..wire.framing import framed

LONGEST = 4096  # bytes; nobody who has not said who he is sends more
PATIENCE = 10.0  # seconds for all of it
LOST_SECONDS = 20  # after which a machine that no longer answers is gone, whatever its engine was doing
PROBES = 4  # of it in that time
_LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, frozen=True):
    """secret: what only our replicas have been told. name: the replica's, another one after each start.

    leaving: the replica is to end. What it runs may end before: then this connection, which is of no engine, is closed.
    """

    secret: str
    name: str
    leaving: bool = False


class Stranger(Exception):
    """Who connects is no replica of ours."""


def say_hello(end: socket.socket, hello: Hello) -> None:
    """Begin a connection. Raises OSError."""
    _set_options(end)
    end.sendall(framed(msgspec.msgpack.encode(hello)))


async def hear_hello(end: socket.socket, secret: str) -> Hello:
    """Return what a replica that has connected says. Raises Stranger."""
    end.setblocking(False)
    _set_options(end)
    try:
        async with asyncio.timeout(PATIENCE):
            (length,) = _LENGTH.unpack(await _exactly(end, _LENGTH.size))
            if length > LONGEST:
                raise Stranger(f"its first message has {length} bytes")
            hello = msgspec.msgpack.decode(await _exactly(end, length), type=Hello)
    except (OSError, TimeoutError, msgspec.MsgspecError) as error:
        raise Stranger(f"it does not say who it is: {error!r}") from None
    if not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        raise Stranger("it does not know the secret")
    return hello


def _set_options(end: socket.socket) -> None:
    """Send what is small at once, since outputs are waited for, and notice a machine that has gone without a word."""
    every = LOST_SECONDS // PROBES
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_NODELAY, 1),
        (socket.TCP_KEEPIDLE, every),
        (socket.TCP_KEEPINTVL, every),
        (socket.TCP_KEEPCNT, PROBES - 1),
        (socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000),
    ):
        end.setsockopt(socket.IPPROTO_TCP, option, value)


async def _exactly(end: socket.socket, length: int) -> bytes:
    """Read so many bytes and no more: what follows is for the engine's client. Raises OSError."""
    loop, data = asyncio.get_running_loop(), b""
    while len(data) < length:
        more = await loop.sock_recv(end, length - len(data))
        if not more:
            raise ConnectionResetError("it has closed the connection")
        data += more
    return data
