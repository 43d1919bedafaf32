"""Every error that a client sees, in OpenAI's envelope and without the server's insides.

ApiError            what a route raises; carries the whole answer
AdapterError        of adapters/errors.py, translated by class
EngineFault         of wire/faults.py, translated by class: what is no client's doing
EngineDead          503
anything else       500, with the trace in the log only
"""

import logging
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import Meta
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute

from peftserve.adapters import errors as adapter_errors
from peftserve.adapters.errors import AdapterError

from ...wire import faults
from ...wire.faults import EngineFault
from ..engine.interface import EngineDead
from .methods import allowed_methods

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1
RETRY_AFTER_DEATH_SECONDS = 10
ENGINE_DEAD_MESSAGE = "The model's engine has stopped; the server cannot answer until it is there again."

EXPECTED = (
    HTTPException,
    RequestValidationError,
    ValidationError,
    ClientDisconnect,
    AdapterError,
    EngineFault,
    EngineDead,
)

SERVER_FAULT = "server_error"
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
    adapter_errors.NameTaken: (409, "adapter_conflict"),
    adapter_errors.AdapterForbidden: (403, "forbidden"),
    adapter_errors.AdapterTooLarge: (413, "adapter_too_large"),
    adapter_errors.QuotaExceeded: (403, "quota_exceeded"),
    adapter_errors.AdapterDamaged: (503, "adapter_damaged"),
    adapter_errors.AdapterFailed: (500, "adapter_failed"),
    adapter_errors.NoMemoryForAdapter: (503, "out_of_memory"),
    adapter_errors.StoreFull: (503, "store_full"),
    adapter_errors.StoreFailed: (503, "store_failed"),
}
_SERVERS_OWN = (
    adapter_errors.AdapterDamaged,
    adapter_errors.AdapterFailed,
    adapter_errors.NoMemoryForAdapter,
    adapter_errors.StoreFull,
    adapter_errors.StoreFailed,
)
_FAULT_ANSWERS: dict[type[EngineFault], tuple[int, str]] = {
    faults.QueueTimeout: (429, "queue_timeout"),
    faults.StepFailed: (500, "step_failed"),
    faults.InvalidLogits: (500, "invalid_logits"),
    faults.OutOfMemory: (503, "out_of_memory"),
    faults.ReplicaLost: (503, "replica_lost"),
    faults.NoReplica: (503, "no_replica"),
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

    message: what was wrong, where, and what would be right. param: the field at fault. kind: the body's type, where the
    status does not say it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        kind: str | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.body = ErrorBody(message, kind or error_type(status), param, code)


def error_type(status: int) -> str:
    return _TYPES.get(status, "invalid_request_error" if status < 500 else SERVER_FAULT)


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
    if isinstance(error, EngineFault):
        return _from_engine_fault(error)
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


def install_error_handlers(app: FastAPI, routes: Sequence[BaseRoute] = ()) -> None:
    """Let an application answer every error in the envelope. routes: all of its own, for what a path takes instead."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def answer_method(request: Request, error: Exception) -> Response:
        response = error_response(error)
        response.headers["allow"] = allowed_methods(routes, request.scope) or response.headers.get("allow", "")
        return response

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(405, answer_method)


def _from_adapter_error(error: AdapterError) -> ApiError:
    status, code = _ADAPTER_ANSWERS.get(type(error), (500, "internal_error"))
    headers = {"Retry-After": str(RETRY_AFTER_DEATH_SECONDS)} if status == 503 else None
    kind = SERVER_FAULT if isinstance(error, _SERVERS_OWN) else None
    return ApiError(status, error.message, param=error.param, code=code, headers=headers, kind=kind)


def _from_engine_fault(error: EngineFault) -> ApiError:
    status, code = _FAULT_ANSWERS[type(error)]
    seconds = RETRY_SECONDS if error.retry_seconds is None else max(error.retry_seconds, RETRY_SECONDS)
    headers = {"Retry-After": str(seconds)} if status in (429, 503) else None
    kind = None if status == 429 else SERVER_FAULT
    return ApiError(status, error.message, code=code, headers=headers, kind=kind)


def _describe(fault: Any) -> str:
    place = _place(fault)
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _place(fault: Any) -> str:
    return ".".join(str(part)[:64] for part in fault["loc"] if part != "body")
