"""Whose a request is that one process passes on to another: the client's address, in a header of the private socket's.

What a client itself sends under this name never reaches it.
"""

from starlette.types import ASGIApp, Receive, Scope, Send

HEADER = b"x-peftserve-client"


def with_client(headers: list[tuple[bytes, bytes]], scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers of a request that is passed on, with who asked for it."""
    client = scope.get("client")
    kept = [pair for pair in headers if pair[0] != HEADER]
    return [*kept, (HEADER, client[0].encode())] if client else kept


class FromOthers:
    """A middleware of the private socket that tells the application whose a request was."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            address = next((value.decode("latin-1") for name, value in scope["headers"] if name == HEADER), None)
            scope = {**scope, "client": None if address is None else (address, 0)}
        await self._app(scope, receive, send)
