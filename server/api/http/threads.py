"""Work that a thread does for a request, and that must have ended before what it works on is given back."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


async def to_the_end(work: Callable[..., T], *arguments: object) -> T:
    """Run work in a thread, and wait for it even when the request is cancelled: the thread still uses its files."""
    thread = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        await asyncio.wait([thread])
        raise


@asynccontextmanager
async def entered(make: Callable[..., AbstractContextManager[T]], *arguments: object) -> AsyncIterator[T]:
    """Be in the context that a thread makes, while the block runs.

    It is left also where the request is cancelled while the thread still makes it.
    """
    making = asyncio.ensure_future(asyncio.to_thread(make, *arguments))
    try:
        context = await asyncio.shield(making)
    except asyncio.CancelledError:
        await asyncio.wait([making])
        if making.exception() is None:
            with making.result():
                raise
        raise
    with context as inside:
        yield inside
