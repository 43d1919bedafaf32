"""The middleware that has a record of each request, and gives it on when the request has ended."""

from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .record import RECORD, RequestRecord

Ended = Callable[[RequestRecord], None]


class Watch:
    """A middleware around all others. ended: what is called, in this order, with the record of each request."""

    def __init__(self, app: ASGIApp, ended: Sequence[Ended]) -> None:
        self._app = app
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = scope[RECORD] = RequestRecord(scope, scope["method"], scope["path"])

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.answer(message["status"], message["headers"])
                await send(message)
            else:
                record.sent += len(message.get("body", b""))
                await send(message)
                record.complete = not message.get("more_body", False)

        try:
            await self._app(scope, receive, note)
        finally:
            record.end()
            for ended in self._ended:
                ended(record)
