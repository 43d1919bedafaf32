"""What Anthropic's clients do otherwise than OpenAI's, below /v1/messages: the header of the key, and errors.

Errors are raised, and answered, as everywhere; their envelope is changed on the way out, whoever has refused the
request. Knows ASGI; does not know what is sent.
"""

from collections.abc import Mapping

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..http.errors import ErrorEnvelope
from .structs import MessageError, MessageErrorBody

PATH = "/v1/messages"

_TYPES: Mapping[str, str] = {"service_unavailable": "overloaded_error", "server_error": "api_error"}
_TYPES_BY_STATUS: Mapping[int, str] = {404: "not_found_error"}


class MessagesDialect:
    """A middleware outside of all that may refuse a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_ours(scope["path"]):
            await self._app(scope, receive, send)
        else:
            await self._app(_with_bearer(scope), receive, _Errors(send))


def is_ours(path: str) -> bool:
    return path == PATH or path.startswith(f"{PATH}/")


def message_error(kind: str, message: str, status: int = 0) -> MessageError:
    """Return an error of OpenAI's `kind` as Anthropic's clients know it."""
    return MessageError(MessageErrorBody(_TYPES_BY_STATUS.get(status, _TYPES.get(kind, kind)), message))


def _with_bearer(scope: Scope) -> Scope:
    """Return the scope with the key of `x-api-key` where no other is given."""
    headers = dict(scope["headers"])
    if b"x-api-key" not in headers or b"authorization" in headers:
        return scope
    return {**scope, "headers": [*scope["headers"], (b"authorization", b"Bearer " + headers[b"x-api-key"])]}


class _Errors:
    """Sends what is sent to it, and an error of the server's own in Anthropic's envelope."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None  # of an error, until its body is there
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            self._start = message
        elif self._start is None or message["type"] != "http.response.body":
            await self._send(message)
        else:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._answer(self._start)

    async def _answer(self, start: Message) -> None:
        try:
            error = msgspec.json.decode(self._body, type=ErrorEnvelope).error
        except msgspec.DecodeError:  # no answer of ours
            body = self._body
        else:
            body = msgspec.json.encode(message_error(error.type, error.message, start["status"]))
        kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        await self._send({**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]})
        await self._send({"type": "http.response.body", "body": body})
