"""Work that a thread does for a request, and that must have ended before what it works on is given back."""

import asyncio
from collections.abc import Callable
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
