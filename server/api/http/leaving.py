"""Work that stops when the client leaves that it is done for."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

CLIENT_GONE = 499  # nobody reads this status; access logs show it

T = TypeVar("T")


class Connection(Protocol):
    """The client's connection, in the ASGI scope as `CONNECTION`."""

    def watch(self, leave: Callable[[], None]) -> None:
        """Call `leave` when the client leaves, at once if it has left, until `unwatch`."""

    def unwatch(self) -> None: ...


class ClientGone(Exception):
    """The client has closed its connection."""


async def until_disconnect(connection: Connection, work: Awaitable[T]) -> T:
    """Return the result of `work`; cancel it if the client leaves first. Raises ClientGone then."""
    task, gone = _current_task(), False

    def leave() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    connection.watch(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        connection.unwatch()


def _current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task
