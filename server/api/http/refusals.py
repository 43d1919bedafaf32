"""The answers to clients that are turned away before any route sees them, in OpenAI's envelope."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..private.uvicorn_private import STATUS_LINE
from .errors import RETRY_SECONDS, ApiError, error_response, unavailable
from .request_ids import HEADER as REQUEST_ID_HEADER
from .request_ids import id_of


@dataclass(frozen=True)
class Refusal:
    """One way to turn a client away. reason: as which it is counted. error: what the client is told, if anything."""

    reason: str
    error: ApiError | None = None

    def answer(self, more: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
        """Return the whole answer as it is sent; empty without an error. more: headers beside its own."""
        if self.error is None:
            return b""
        response = error_response(self.error)
        headers = [*response.raw_headers, *more, (b"connection", b"close")]
        head = b"".join(b"%b: %b\r\n" % pair for pair in headers)
        return STATUS_LINE[response.status_code] + head + b"\r\n" + bytes(response.body)


@dataclass(frozen=True)
class Refused:
    """A request that is turned away, as far as it has come. method, url, client: empty where they are not known.

    headers: in lower case. status: of the answer; None where there is none. request_id: where an application works on
    it already, and will tell of it.
    """

    reason: str
    status: int | None
    method: str
    url: bytes
    headers: Sequence[tuple[bytes, bytes]]
    client: str
    request_id: str | None = None


def id_alone(refused: Refused) -> list[tuple[bytes, bytes]]:
    """Return the headers that every answer has."""
    return [(REQUEST_ID_HEADER, (refused.request_id or id_of(refused.headers)).encode())]


INVALID = Refusal("invalid", ApiError(400, "The request is not valid HTTP/1.1.", code="invalid_http"))
CROWDED = Refusal(
    "connections",
    unavailable("The server has as many connections as it takes; try again soon.", "too_many_connections"),
)
CROWDED_ADDRESS = Refusal(
    "connections_per_address",
    unavailable("There are as many connections from this address as the server takes.", "too_many_connections"),
)
PIPELINED = Refusal(
    "pipelined",
    ApiError(
        429,
        "Too many requests wait on one connection for the answer to the first; wait, or open another connection.",
        code="too_many_pipelined_requests",
        headers={"Retry-After": str(RETRY_SECONDS)},
    ),
)
SLOW_HEAD = Refusal(
    "timeout_headers", ApiError(408, "The request's line and headers took too long to come.", code="headers_timeout")
)
SLOW_BODY = Refusal(
    "timeout_body", ApiError(408, "The request's body came too slowly, or not to its end.", code="body_timeout")
)


def long_url(limit: int) -> Refusal:
    """Refuse a URL of more than `limit` bytes."""
    return Refusal("url", ApiError(414, f"The request's URL is over the limit of {limit} bytes.", code="url_too_long"))


def large_head(limit: int) -> Refusal:
    """Refuse a request's line and headers of more than `limit` bytes."""
    message = f"The request's line and headers are over the limit of {limit} bytes."
    return Refusal("headers", ApiError(431, message, code="headers_too_large"))


def many_headers(limit: int) -> Refusal:
    """Refuse more than `limit` headers."""
    message = f"The request has more than {limit} headers."
    return Refusal("headers", ApiError(431, message, code="too_many_headers"))


def large_frames(limit: int) -> Refusal:
    """Refuse chunks with more than `limit` bytes beside the body."""
    message = f"What the body's chunks carry beside the body is over the limit of {limit} bytes."
    return Refusal("chunks", ApiError(400, message, code="chunks_too_large"))
