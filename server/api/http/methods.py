"""HEAD wherever there is GET, and what a path takes where it does not take a method.

The framework knows neither: it has routes by method, and names the first one's.
"""

import contextlib
from collections.abc import Iterable

from starlette.routing import BaseRoute, Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadAsGet:
    """A middleware that answers HEAD as GET, and stops a body at its beginning."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b""})
            if message.get("more_body", False):
                raise _Answered

        with contextlib.suppress(_Answered):
            await self._app({**scope, "method": "GET"}, receive, send_head)


class _Answered(Exception):
    """The client has all that it gets of an answer with a long body."""


def allowed_methods(routes: Iterable[BaseRoute], scope: Scope) -> str:
    """Return the header `Allow` of a path: all methods of all routes that match it."""
    matching = (route for route in routes if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE)
    found = {method for route in matching for method in route.methods or ()}
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))
