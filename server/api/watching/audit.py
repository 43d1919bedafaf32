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
from ..tenancy.tenant import SERVER, Tenant

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


_NOBODY = _Asking()
_asking: ContextVar[_Asking] = ContextVar("asking", default=_NOBODY)


class AuditLog:
    """The log of one server. target: a file's path, or `-` for standard output. Raises OSError."""

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
        asking, now = _asking.get(), time.time()
        told = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        line = msgspec.convert({**msgspec.structs.asdict(asking), **fields, "time": told, "what": what}, AuditLine)
        text = msgspec.json.encode(line).decode()
        self._handler.handle(logging.LogRecord("audit", logging.INFO, "", 0, text.replace("%", "%%"), (), None))


class _File(WatchedFileHandler):
    """A file whose faults are told in the server's own log, and stop no change."""

    def handleError(self, record: logging.LogRecord) -> None:
        logger.error("The audit log cannot be written: %s", sys.exc_info()[1])


class Audited:
    """A middleware behind the one that says who asks: what is done in a request is done for that one."""

    def __init__(self, app: ASGIApp, log: AuditLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        token = _asking.set(_of(scope))
        try:
            await self._app(scope, receive, self._watched(send) if is_change(scope) else send)
        finally:
            _asking.reset(token)

    def _watched(self, send: Send) -> Send:
        async def note(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._log.refused(message["status"])
            await send(message)

        return note


def is_change(scope: Scope) -> bool:
    """Return whether a request asks for a change, which may be refused."""
    path: str = scope["path"]
    return (
        scope["method"] in _METHODS
        and (path.startswith(_PATHS) or path.rstrip("/") in _VLLM)
        and not path.endswith(_LOOKS)
    )


def _of(scope: Scope) -> _Asking:
    tenant: Tenant = scope.get(TENANT, SERVER)
    client = scope["client"]
    return _Asking(
        tenant.shown or tenant.name,
        "admin" if tenant.is_admin else "user",
        client[0] if client else "",
        f"{scope['method']} {scope['path'][:LONGEST]}",
        scope[REQUEST_ID],
    )
