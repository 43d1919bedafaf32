"""Reading a request's body: never more than the limit, and as the type that the route wants."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, bad_request, error_response
from .json_values import Values, count_values
from .memory import FREE, BodyMemory, Share

FRAMING = 1 << 20  # what multipart boundaries, headers and small fields may take beside the files
UPLOAD_BLOCK = 2 << 20  # bytes of an upload that are in memory at most, before they are on disk
SMALL_BODY = 1 << 18  # bytes, of which no parser has long
MAX_VALUES = Values((1 << 20) + (1 << 16), 1 << 16, 1 << 18)  # a million token ids and what stands beside them

M = TypeVar("M", bound=BaseModel)


class BodyLimit:
    """A middleware that limits bodies.

    limit: bytes of any body. upload_limit: of an uploaded adapter's files. memory: for all of them together.
    """

    def __init__(self, app: ASGIApp, *, limit: int, upload_limit: int, memory: BodyMemory) -> None:
        self._app = app
        self._limit = limit
        self._upload_limit = upload_limit + FRAMING
        self._memory = memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_upload = _is_upload(scope)
        limit = self._upload_limit if is_upload else self._limit
        declared = _declared_length(scope)
        if declared is not None and declared > limit:
            await error_response(_too_large(limit))(scope, receive, send)
        elif declared is not None and declared <= FREE:
            await self._app(scope, receive, send)
        else:
            with self._memory.share(UPLOAD_BLOCK if is_upload else limit) as share:
                await self._app(scope, _counting(receive, limit, share), send)


def json_body(model: type[M]) -> Callable[[Request], Awaitable[M]]:
    """Return a dependency that reads JSON, whatever the content type says.

    It raises pydantic's ValidationError, ApiError 413.
    """

    async def read(request: Request) -> M:
        return await read_json(request, model)

    return read


async def read_json(request: Request, model: type[M]) -> M:
    """Return the body as the model. Raises pydantic's ValidationError, and what `read_bytes` raises."""
    return model.model_validate_json(await read_bytes(request))


async def read_bytes(request: Request) -> bytes:
    """Return a body of JSON as it came.

    Raises ApiError 413, and 400 for so many values that their parsing would stall others.
    """
    body = await _read(request)
    if len(body) > SMALL_BODY:
        await _check_values(body)
    return body


async def _read(request: Request) -> bytes:
    pieces: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _check_values(body: bytes) -> None:
    for counted in count_values(body):
        for name, number, most in zip(Values._fields, counted, MAX_VALUES, strict=True):
            if number > most:
                raise bad_request(
                    f"The body holds more than {most} JSON {name}; send less at once.", code="body_too_large"
                )
        await asyncio.sleep(0)  # others have their turn


def is_form(content_type: str) -> bool:
    """Return whether a body of this type is a form, which goes to disk; any other is read into memory."""
    return content_type.partition(";")[0].strip().lower() == "multipart/form-data"


def _is_upload(scope: Scope) -> bool:
    return bool(scope["path"] == "/v1/adapters") and is_form(Headers(scope=scope).get("content-type", ""))


def _declared_length(scope: Scope) -> int | None:
    """Return Content-Length, beyond which the server reads nothing; None of a body that comes in chunks."""
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() and len(value) < 20 else None
    return None


def _counting(receive: Receive, limit: int, share: Share) -> Receive:
    """Return `receive` with a count, which raises ApiError 413 and 503 from where the body is read."""
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        number = len(message.get("body", b""))
        received += number
        if received > limit:
            raise _too_large(limit)
        if message.get("more_body", False):
            share.add(number)
        else:
            share.close()
        return message

    return counted


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request's body is over the limit of {limit} bytes.", code="body_too_large")
