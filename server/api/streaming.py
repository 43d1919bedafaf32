"""Answers that take a while: server-sent events, and work that stops when the client leaves.

Knows ASGI; does not know what is sent.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import ExitStack, aclosing
from typing import Any, TypeVar

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from .errors import ErrorEnvelope, translate

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
CLIENT_GONE = 499  # nobody reads this status; access logs show it

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode


class ClientGone(Exception):
    """The client has closed its connection."""


class EventStream(Response):
    """events: what goes into the stream, in order. held: released when the stream ends, however it ends."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[msgspec.Struct], held: ExitStack, headers: Mapping[str, str]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(receive, self._stream(send))
        except ClientGone:
            pass
        finally:
            self._held.close()

    async def _stream(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            # Released here, so that what is held learns how the stream ended.
            with self._held:
                async with aclosing(self._events):
                    async for event in self._events:
                        await _send_part(send, b"data: %b\n\n" % _encode(event))
        except Exception as error:
            await _send_part(send, _error_event(error))
        await send({"type": "http.response.body", "body": DONE, "more_body": False})


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, unless the client leaves first: then `work` is cancelled. Raises ClientGone."""
    tasks = (asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive)))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
        raise ClientGone
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _error_event(error: Exception) -> bytes:
    answer = translate(error)
    if answer.status_code == 500:
        logger.error("A stream has failed", exc_info=error)
    return b"data: %b\n\n" % _encode(ErrorEnvelope(answer.body))
