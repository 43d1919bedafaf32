"""A prefix of all paths, under which a proxy shows the server to its clients.

Some proxies take the prefix off before they pass a request on, some do not: both work. Inside, paths have none, but for
the framework, which says it in links to its description.
"""

from starlette.types import ASGIApp, Receive, Scope, Send


class WithoutRootPath:
    """A middleware that takes the prefix off a request's path. prefix: such as `/llm`."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope["raw_path"]
        if raw == self._prefix or raw.startswith(self._prefix + b"/"):
            rest = raw[len(self._prefix) :] or b"/"
            # Changed and not copied: what is noted in the scope further in is for those further out.
            scope["raw_path"], scope["path"] = rest, scope["path"][len(self._prefix) :] or "/"
        await self._app(scope, receive, send)


class WithRootPath:
    """A middleware that says the prefix to a framework, as ASGI has it: in `root_path` and in `path`."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, raw = self._prefix + scope["path"], self._prefix.encode("ascii") + scope["raw_path"]
        await self._app({**scope, "path": path, "raw_path": raw, "root_path": self._prefix}, receive, send)
