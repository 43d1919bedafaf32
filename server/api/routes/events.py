"""GET /v1/adapters/events: what happens to adapters, as server-sent events."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import msgspec
from fastapi import APIRouter, Header, Response
from msgspec.structs import replace
from starlette.types import Receive, Scope, Send

from peftserve.adapters.events import MAX_WATCHERS, Event, TooManyWatchers, Watcher

from ..http.auth import IS_KNOWN
from ..http.errors import ApiError, bad_request
from ..http.leaving import ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..services import ServicesOf
from .documentation import EVENTS, Operation

router = APIRouter(tags=["Adapters"])

LOOK = 1.0  # seconds between two questions whether its key is known still
HEARTBEAT = 15.0  # seconds; proxies cut what is silent for longer
RETRY_SECONDS = 5
EXAMPLE = (
    "id: 1767225600000000\nevent: adapter.added\n"
    'data: {"id":1767225600000000,"event":"adapter.added","time":1767225600.5,"name":"sql","version":2}\n\n'
)


class WatchStream(Response):
    """The events of one watcher, with comments in between, until the client or the server leaves or its key goes."""

    media_type = EVENTS

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._watcher = watcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._watcher, suppress(ClientGone):
            await until_disconnect(scope[CONNECTION], self._stream(send, scope[IS_KNOWN]))

    async def _stream(self, send: Send, is_known: Callable[[], bool]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _send(send, b"retry: %d\n\n" % (RETRY_SECONDS * 1000))
        said = time.monotonic()
        while (events := await self._watcher.read(min(LOOK, HEARTBEAT))) is not None and is_known():
            if events or time.monotonic() - said >= HEARTBEAT:
                await _send(send, b"".join(map(frame, events)) or b": %d\n\n" % time.time())
                said = time.monotonic()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@router.get("/v1/adapters/events")
@Operation("Watch adapters", EXAMPLE, text_type=EVENTS, errors=(400, 429))
async def watch_adapters(
    services: ServicesOf,
    last_event_id: Annotated[str | None, Header(description="The id of the last event that was seen.")] = None,
) -> Response:
    """Send what happens to adapters, routes and the default from now on, or from behind `Last-Event-ID`, as
    server-sent events. `dropped` says that events were lost: list the adapters anew.
    """
    return WatchStream(_watch(services, last_event_id))


def _watch(services: ServicesOf, last_event_id: str | None) -> Watcher:
    after = last_event_id or None
    if after is not None and not (after.isascii() and after.isdigit() and len(after) < 20):
        raise bad_request("Last-Event-ID must be the id of an event of this server.", "Last-Event-ID")
    try:
        actor = services.actor
        return services.owned.life.events.watch(None if after is None else int(after), actor.sees, actor.name)
    except TooManyWatchers:
        raise ApiError(
            429,
            f"{MAX_WATCHERS} clients watch the adapters already, which is the most; try again later.",
            code="too_many_watchers",
            headers={"Retry-After": str(RETRY_SECONDS)},
        ) from None


def frame(event: Event) -> bytes:
    """Return an event as it is sent."""
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (
        event.id,
        event.event.encode(),
        msgspec.json.encode(replace(event, owner="")),
    )


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
