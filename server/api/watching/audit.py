"""The audit log: a line of JSON for each change to adapters, routes, the default, settings and keys, and for each that
was refused. Never a key, nor anything that a body says.

A change is written when it is made, before its client hears of it. The file is only ever added to, and opened anew when
it has been moved away, as logrotate does.
"""

import contextlib
import logging
import sys
import time
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from peftserve.adapters.events import Event

from ..http.auth import TENANT
from ..http.request_ids import REQUEST_ID
from ..tenancy.tenant import ANYONE, Tenant

logger = logging.getLogger(__name__)

STDOUT = "-"
CHANGES = frozenset(
    {
        *("adapter.added", "adapter.deleted", "adapter.restored"),
        *("default.changed", "route.changed", "settings.changed"),
    }
)
_METHODS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_PATHS = ("/v1/adapters", "/v1/default-adapter", "/v1/routes", "/v1/models/", "/v1/jobs/")
_VLLM = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/load_lora_adapter"})
_LOOKS = ("/explain", "/evaluate")  # POSTs that change nothing
_PASSED_ON = "peftserve.passed_on"  # in the ASGI scope: whoever answers writes what there is to say
LONGEST = 512  # characters of a path


class AuditLine(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One line. who: the tenant, a key's first digits, `anyone` without a valid key, or `server`.

    what: a change, or `refused`. request: method and path. id: the request's. status: of what was refused.
    """

    time: str
    who: str
    role: str
    what: str
    client: str = ""
    request: str = ""
    id: str = ""
    name: str | None = None
    version: int | None = None
    digest: str | None = None
    status: int | None = None
    keys: int | None = None
    error: str | None = None


class _Asking(msgspec.Struct, frozen=True):
    """Who asks for what is done now."""

    who: str = "server"
    role: str = "admin"
    client: str = ""
    request: str = ""
    id: str = ""


class _Request:
    """A request whose asker is found out on the way. prefix: that a proxy may have put before its path."""

    def __init__(self, scope: Scope, prefix: str) -> None:
        self._scope = scope
        self._prefix = prefix
        self._asking: _Asking | None = None

    @property
    def path(self) -> str:
        return str(self._scope["path"]).removeprefix(self._prefix)

    def asking(self) -> _Asking:
        """Return who asks, by what is known of that by now."""
        if self._asking is not None:
            return self._asking
        tenant: Tenant = self._scope.get(TENANT, ANYONE)
        client = self._scope["client"]
        return _Asking(
            tenant.shown or tenant.name,
            "admin" if tenant.is_admin else "user",
            client[0] if client else "",
            f"{self._scope['method']} {self.path[:LONGEST]}",
            self._scope[REQUEST_ID],
        )

    def end(self) -> None:
        """Keep no more than that, for what still runs in its name."""
        self._asking, self._scope = self.asking(), {}


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


class AuditLog:
    """The log, as one process adds to it. target: a file's path, or `-` for standard output. Raises OSError."""

    def __init__(self, target: str) -> None:
        self._handler: logging.Handler
        self._handler = logging.StreamHandler(sys.stdout) if target == STDOUT else _File(target, encoding="utf-8")

    def observe(self, event: Event) -> None:
        """Write what has happened, if it is a change."""
        if event.event in CHANGES:
            self._write(event.event, name=event.name, version=event.version, digest=event.digest)

    def keys_changed(self, count: int, fault: str | None) -> None:
        """Write that the file of keys has been read again. count: keys that are known now. From any thread."""
        self._write("keys.changed" if fault is None else "keys.refused", keys=count, error=fault)

    def refused(self, status: int) -> None:
        """Write that a change was refused, to the one who asks."""
        self._write("refused", status=status)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # which has been told of
            self._handler.close()

    def _write(self, what: str, **fields: str | int | None) -> None:
        request, now = _request.get(), time.time()
        asking = _Asking() if request is None else request.asking()
        told = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        line = msgspec.convert({**msgspec.structs.asdict(asking), **fields, "time": told, "what": what}, AuditLine)
        text = msgspec.json.encode(line).decode()
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, "%s", (text,), None))


class _File(WatchedFileHandler):
    """A file whose faults are told in the server's own log, and stop no change."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except Exception:  # of its opening anew, which the library does not catch
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        logger.error("The audit log cannot be written: %s", sys.exc_info()[1])


class Audited:
    """A middleware around those that let in and turn away: what is done in a request is done for who asks.

    prefix: that a proxy may have put before paths.
    """

    def __init__(self, app: ASGIApp, log: AuditLog, prefix: str = "") -> None:
        self._app = app
        self._log = log
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(scope, self._prefix)
        token = _request.set(request)
        try:
            watched = is_change(scope["method"], request.path)
            await self._app(scope, receive, self._watched(scope, send) if watched else send)
        finally:
            _request.reset(token)
            request.end()

    def _watched(self, scope: Scope, send: Send) -> Send:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400 and _PASSED_ON not in scope:
                self._log.refused(message["status"])
            await send(message)

        return note


def passing_on(app: ASGIApp) -> ASGIApp:
    """Return an application that passes requests on to a process which writes of them itself."""

    async def pass_on(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_PASSED_ON] = True
        await app(scope, receive, send)

    return pass_on


def is_change(method: str, path: str) -> bool:
    """Return whether a request asks for a change, which may be refused."""
    is_look = method == "POST" and path.endswith(_LOOKS)
    return method in _METHODS and (path.startswith(_PATHS) or path.rstrip("/") in _VLLM) and not is_look
