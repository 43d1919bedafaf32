"""The process that deals out sequences: an engine to the API processes, which start it as they start an engine.

Replicas connect to it over TCP, with a secret that they are given by whoever starts them. Knows sockets and tasks; does
not know what is said on them.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from ..wire.messages import EngineFailed
from .dialer import Target
from .dispatcher import Dispatcher
from .fleet import Fleet, FleetError
from .hello import Stranger, hear_hello

logger = logging.getLogger(__name__)

BACKLOG = 128
BEAT_SECONDS = 0.5


async def deal_out(door: socket.socket, fleet: Fleet) -> int:
    """Run until `Shutdown`. Returns the exit status: 1 where the replicas cannot be started."""
    stopped = asyncio.Event()
    dispatcher = Dispatcher(stopped.set)
    dispatcher.door.open(door)
    try:
        async with _running(_beat(dispatcher)):
            host = await asyncio.to_thread(fleet.open)
            with socket.create_server((host, 0), backlog=BACKLOG) as listener:
                await _serve(dispatcher, fleet, listener, stopped)
    except FleetError as error:
        dispatcher.door.send(EngineFailed(str(error)))
        return 1
    except Exception as error:
        logger.exception("no sequences can be dealt out")
        dispatcher.door.send(EngineFailed(f"{type(error).__name__}: {error}"))
        return 1
    finally:
        dispatcher.close()
        await asyncio.to_thread(fleet.close)
    return 0


async def _serve(dispatcher: Dispatcher, fleet: Fleet, listener: socket.socket, stopped: asyncio.Event) -> None:
    """Take in replicas until it is to stop. Raises FleetError."""
    secret = secrets.token_hex(32)
    host, port = listener.getsockname()[:2]
    async with _running(_accept(dispatcher, listener, secret)):
        start = asyncio.create_task(asyncio.to_thread(fleet.start, Target(host, port, secret)), name="fleet")
        stop = asyncio.create_task(stopped.wait(), name="stop")
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            await stop


@asynccontextmanager
async def _running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Have a coroutine run as long as the block does."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _beat(dispatcher: Dispatcher) -> None:
    while True:
        dispatcher.beat()
        await asyncio.sleep(BEAT_SECONDS)


async def _accept(dispatcher: Dispatcher, listener: socket.socket, secret: str) -> None:
    listener.setblocking(False)
    loop, welcomes = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    while True:
        end, _ = await loop.sock_accept(listener)
        task = asyncio.create_task(_welcome(dispatcher, end, secret), name="hello")
        welcomes.add(task)
        task.add_done_callback(welcomes.discard)


async def _welcome(dispatcher: Dispatcher, end: socket.socket, secret: str) -> None:
    """Take in a replica, or let one go."""
    try:
        hello = await hear_hello(end, secret)
    except Stranger as error:
        logger.warning("A connection that is no replica's is closed: %s", error)
        end.close()
        return
    if not hello.leaving:
        await dispatcher.admit(hello.name, end)
        return
    with end:
        await dispatcher.take_leave(hello.name)
