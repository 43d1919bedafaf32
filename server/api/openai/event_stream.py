"""Answers that take a while: server-sent events, and work that stops when the client leaves.

Knows ASGI; does not know what is sent.
"""

import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from ..http.errors import ErrorBody, ErrorEnvelope, error_response, translate
from ..http.leaving import ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..http.request_ids import REQUEST_ID
from ..request_lease import RequestLease

logger = logging.getLogger(__name__)

encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"


def frame(event: msgspec.Struct) -> bytes:
    return b"data: %b\n\n" % encode(event)


@dataclass(frozen=True)
class Ending:
    """How a stream ends. failed: returns the event that tells of an error. done: the bytes behind all events."""

    failed: Callable[[ErrorBody], bytes]
    done: bytes = b""


OF_COMPLETIONS = Ending(lambda error: frame(ErrorEnvelope(error)), DONE)


class EventStream(Response):
    """A response of server-sent events. events: the stream's bytes, one or more whole events each time.

    lease: given back when the stream ends, however it ends.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes], lease: RequestLease, headers: Mapping[str, str], ending: Ending
    ) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        del self.headers["content-length"]
        self._events = events
        self._lease = lease
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnect(scope[CONNECTION], self._stream(scope, receive, send))
        except ClientGone:
            pass
        finally:
            self._lease.close()

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, the head with the first one: what fails before it is no stream but an answer of its own."""
        begun = False
        try:
            # Released here, so that the lease learns how the stream ended.
            with self._lease:
                async with aclosing(self._events):
                    async for events in self._events:
                        if events:
                            if not begun:
                                begun = True
                                await self._begin(send)
                            await _send_part(send, events)
        except Exception as error:
            _log_unexpected(error, scope)
            if not begun:
                await error_response(error)(scope, receive, send)
                return
            await _send_part(send, self._ending.failed(translate(error).body))
        if not begun:
            await self._begin(send)
        await send({"type": "http.response.body", "body": self._ending.done, "more_body": False})

    async def _begin(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})


async def _send_part(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


def _log_unexpected(error: Exception, scope: Scope) -> None:
    if translate(error).status_code == 500:
        logger.error("The stream of the request %s has failed", scope[REQUEST_ID], exc_info=error)


_MARK = uuid.uuid4().hex  # where a template's text goes: no client can have put the same into another field


class TextFrames:
    """Encode events that differ in their text only.

    example: makes the event with which sequence `index` says `text`; called once for each sequence.
    """

    def __init__(self, example: Callable[[int, str], msgspec.Struct]) -> None:
        self._example = example
        self._templates: dict[int, tuple[bytes, bytes]] = {}  # what stands before and behind the text

    def __call__(self, index: int, text: str) -> bytes:
        """Return the bytes of `frame(example(index, text))`, without encoding all of it again."""
        template = self._templates.get(index)
        if template is None:
            before, behind = frame(self._example(index, _MARK)).split(encode(_MARK))
            template = self._templates[index] = (before, behind)
        return template[0] + encode(text) + template[1]
