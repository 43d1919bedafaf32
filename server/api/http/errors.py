"""Every error that a client sees, in OpenAI's envelope and without the server's insides.

ApiError            what a route raises; carries the whole answer
AdapterError        of adapters/errors.py, translated by class
EngineDead          503
anything else       500, with the trace in the log only
"""

import logging
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Meta
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from peftserve.adapters import errors as adapter_errors
from peftserve.adapters.errors import AdapterError

from ..engine.interface import EngineDead

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1
RETRY_AFTER_DEATH_SECONDS = 10
ENGINE_DEAD_MESSAGE = "The model's engine has stopped; the server cannot answer until it is restarted."

EXPECTED = (HTTPException, RequestValidationError, ValidationError, ClientDisconnect, AdapterError, EngineDead)

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "service_unavailable",
}
_ADAPTER_ANSWERS: dict[type[AdapterError], tuple[int, str]] = {
    adapter_errors.InvalidAdapter: (400, "invalid_adapter"),
    adapter_errors.UnsupportedAdapter: (400, "unsupported_adapter"),
    adapter_errors.AdapterNotFound: (404, "model_not_found"),
    adapter_errors.AdapterConflict: (409, "adapter_conflict"),
    adapter_errors.AdapterTooLarge: (413, "adapter_too_large"),
    adapter_errors.QuotaExceeded: (403, "quota_exceeded"),
    adapter_errors.AdapterDamaged: (503, "adapter_damaged"),
    adapter_errors.StoreFull: (503, "store_full"),
}


class ErrorBody(msgspec.Struct):
    """An error: what was wrong, where, and what would be right."""

    message: str
    type: str
    param: Annotated[str | None, Meta(description="The field at fault, if one is.")] = None
    code: Annotated[str | None, Meta(description="What programs tell errors apart by, where they may want to.")] = None


class ErrorEnvelope(msgspec.Struct):
    """OpenAI's envelope of errors."""

    error: ErrorBody


class ApiError(HTTPException):
    """An error that carries its whole answer.

    message: what was wrong, where, and what would be right. param: the field at fault.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.body = ErrorBody(message, error_type(status), param, code)


def error_type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str, retry_after: int = RETRY_SECONDS) -> ApiError:
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after)})


def translate(error: Exception) -> ApiError:
    """Return the error that the client is told of."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, AdapterError):
        return _from_adapter_error(error)
    if isinstance(error, EngineDead):
        return unavailable(ENGINE_DEAD_MESSAGE, "engine_dead", RETRY_AFTER_DEATH_SECONDS)
    if isinstance(error, RequestValidationError | ValidationError):
        return from_validation(error)
    if isinstance(error, ClientDisconnect):
        return bad_request("The request's body ends too early.")
    if isinstance(error, HTTPException):
        headers = dict(error.headers) if error.headers else None
        return ApiError(400 if error.status_code == 422 else error.status_code, str(error.detail), headers=headers)
    return ApiError(500, "The server met an unexpected error.", code="internal_error")


def from_validation(error: RequestValidationError | ValidationError) -> ApiError:
    """Describe the first few faults of a request, each with the place and what would be right. Never what was sent."""
    faults: list[Any] = list(error.errors())
    shown = "; ".join(_describe(fault) for fault in faults[:3])
    more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
    return bad_request(f"Invalid request: {shown}{more}.", param=_place(faults[0]) or None)


def error_response(error: Exception) -> Response:
    answer = translate(error)
    content = msgspec.json.encode(ErrorEnvelope(answer.body))
    return Response(content, answer.status_code, answer.headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error)

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)


def _from_adapter_error(error: AdapterError) -> ApiError:
    status, code = _ADAPTER_ANSWERS.get(type(error), (400, "invalid_adapter"))
    headers = {"Retry-After": str(RETRY_AFTER_DEATH_SECONDS)} if status == 503 else None
    return ApiError(status, error.message, param=error.param, code=code, headers=headers)


def _describe(fault: Any) -> str:
    place = _place(fault)
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _place(fault: Any) -> str:
    return ".".join(str(part)[:64] for part in fault["loc"] if part != "body")
