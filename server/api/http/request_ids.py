"""The id of a request: the client's own if it sends one, else ours; in the scope, in the answer and in what is logged.

Nothing that goes wrong passes this middleware: what no handler has answered is an error in the envelope here.
"""

import logging
import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import error_response

REQUEST_ID = "peftserve.request_id"  # in the ASGI scope: a str
HEADER = b"x-request-id"
LONGEST = 128  # characters of a client's own id

logger = logging.getLogger(__name__)


class RequestIds:
    """A middleware that gives every request an id, and every answer the header `x-request-id`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = scope[REQUEST_ID] = id_of(scope["headers"])
        begun = False

        async def send_with_id(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                kept = [pair for pair in message.get("headers", ()) if pair[0] != HEADER]
                message = {**message, "headers": [*kept, (HEADER, request_id.encode())]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            logger.exception("The request %s has failed", request_id)
            if not begun:
                await error_response(error)(scope, receive, send_with_id)


def id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the id that a request's headers bring, if it is printable and no longer than LONGEST; else a new one."""
    for name, value in headers:
        if name == HEADER and 0 < len(value) <= LONGEST and all(0x20 <= byte < 0x7F for byte in value):
            return value.decode("ascii")
    return secrets.token_hex(16)
