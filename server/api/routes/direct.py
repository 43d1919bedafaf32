"""The routes that are asked for thousands of times a second, answered before the framework sees the request.

They stand among the framework's routes too, which say what other methods get. Knows ASGI; does not know what the
routes do.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping

from fastapi import Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from ..http.auth import TENANT
from ..http.errors import EXPECTED, error_response
from ..http.request_ids import REQUEST_ID
from ..services import Services

logger = logging.getLogger(__name__)

Handler = Callable[[Request, Services], Awaitable[Response]]


class DirectRoutes:
    """A middleware that answers POSTs to some paths itself. posts: path to its handler."""

    def __init__(self, app: ASGIApp, *, services: Services, posts: Mapping[str, Handler]) -> None:
        self._app = app
        self._services = services
        self._posts = posts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._posts.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        response = await self._answer(handler, Request(scope, receive), self._services.seen_by(scope[TENANT]))
        await response(scope, receive, send)

    async def _answer(self, handler: Handler, request: Request, services: Services) -> Response:
        try:
            services.turn_away()
            return await handler(request, services)
        except EXPECTED as error:
            return error_response(error)
        except Exception as error:
            logger.exception("The request %s has failed", request.scope[REQUEST_ID])
            return error_response(error)
