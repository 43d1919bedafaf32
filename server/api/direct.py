"""The routes that are asked for thousands of times a second, answered before the framework looks for a route.

They stand among the framework's routes too, which say what other methods get. Knows ASGI; does not know what the
routes do.
"""

from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import EXPECTED, error_response
from .services import Services

Handler = Callable[[Request, Services], Awaitable[Response]]


class DirectRoutes:
    """posts: path to what answers a POST to it."""

    def __init__(self, app: ASGIApp, *, services: Services, posts: Mapping[str, Handler]) -> None:
        self._app = app
        self._services = services
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        try:
            response = await handler(Request(scope, receive), self._services)
        except EXPECTED as error:
            response = error_response(error)
        await response(scope, receive, send)
