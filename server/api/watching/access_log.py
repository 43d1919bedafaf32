"""The access log: one line for each request when it ends, as JSON or as text for people.

What clients choose freely is cut and escaped, so that a line is one line. Keys are there as a hash's beginning.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime

import msgspec

from ..http.auth import TENANT
from ..http.refusals import Refused
from ..http.request_ids import REQUEST_ID
from .record import RequestRecord

LONGEST = 256  # characters of what a client says of itself, or asks for


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line. Times are in seconds; what does not apply is left out.

    time: of the request's beginning. status: 499 for a client that left, 0 for a connection that was closed without an
    answer. bytes: of the answer's body. refused: why no route saw it.
    """

    time: str
    id: str
    client: str = ""
    forwarded_for: str = ""
    method: str = ""
    path: str = ""
    status: int
    bytes: int = 0
    seconds: float = 0.0
    adapter: str = ""
    route: str = ""
    stream: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queue_seconds: float | None = None
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    tenant: str = ""
    user_agent: str = ""
    trace_id: str = ""
    refused: str = ""


def line_of(record: RequestRecord) -> Line:
    """Return the line of a request that has ended."""
    scope = record.scope
    client = scope.get("client")
    headers = dict(scope["headers"])
    queued, first = record.queue_seconds, record.first_token_seconds
    return Line(
        time=_time(record.began),
        id=scope.get(REQUEST_ID, ""),
        client=client[0] if client else "",
        forwarded_for=_text(headers.get(b"x-forwarded-for", b"")),
        method=record.method,
        path=record.path[:LONGEST],
        status=record.status,
        bytes=record.sent,
        seconds=round(record.seconds, 6),
        adapter=record.adapter,
        route=record.route,
        stream=record.is_stream,
        prompt_tokens=record.prompt_tokens,
        completion_tokens=record.tokens,
        cached_tokens=record.cached_tokens,
        queue_seconds=None if queued is None else round(queued, 6),
        load_seconds=round(record.load_seconds, 6) or None,
        first_token_seconds=None if first is None else round(first, 6),
        tenant=scope[TENANT].shown if TENANT in scope else "",
        user_agent=_text(headers.get(b"user-agent", b"")),
        trace_id=record.trace_id,
    )


def line_of_refused(refused: Refused, request_id: str, now: float) -> Line:
    """Return the line of a request that no application has seen. now: seconds since 1970."""
    headers = dict(refused.headers)
    return Line(
        time=_time(now),
        id=request_id,
        client=refused.client,
        forwarded_for=_text(headers.get(b"x-forwarded-for", b"")),
        method=refused.method,
        path=_text(refused.url.partition(b"?")[0]),
        status=refused.status or 0,
        user_agent=_text(headers.get(b"user-agent", b"")),
        refused=refused.reason,
    )


def as_json(line: Line) -> bytes:
    """Return a line of JSON."""
    return msgspec.json.encode(line) + b"\n"


def as_text(line: Line) -> bytes:
    """Return a line for people: who, what, what came of it, and all else as `name=value`."""
    asked = _quoted(f"{line.method or '-'} {line.path or '-'}")
    begin = [line.time, line.client or "-", asked, str(line.status), str(line.bytes), f"{line.seconds:.3f}s"]
    more = [f"{name}={_shown(value)}" for name, value in _rest(line)]
    return " ".join([*begin, f"id={_shown(line.id)}", *more]).encode("ascii", "backslashreplace") + b"\n"


FORMS: Mapping[str, Callable[[Line], bytes]] = {"json": as_json, "text": as_text}
_BEGINNING = ("time", "id", "client", "method", "path", "status", "bytes", "seconds")


def _rest(line: Line) -> Iterable[tuple[str, object]]:
    """Yield the fields that say something, but for those with which a line of text begins."""
    for name in line.__struct_fields__:
        value = getattr(line, name)
        if name not in _BEGINNING and value not in ("", None, 0, False):
            yield name, value


def _shown(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value) if not value.isalnum() else value
    return f"{value:.6f}" if isinstance(value, float) else str(value).lower()


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _text(value: bytes) -> str:
    return value[:LONGEST].decode("latin-1")


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
