"""HTTP connections that stay open, as thin as can be: their work is done on the cores of the measured server."""

import asyncio
from collections.abc import Iterator
from typing import cast


class _Connection(asyncio.Protocol):
    """One connection: asks, reads to the answer's end, asks again, while there is something left to ask for."""

    def __init__(self, request: bytes, left: Iterator[int], answers: list[bytes]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._left = left
        self._answers = answers
        self._transport: asyncio.Transport | None = None  # set when the connection is made
        self._parts: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        if self._is_whole():
            self._answers.append(b"".join(self._parts))
            self._parts.clear()
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server has closed the connection"))

    def _ask(self) -> None:
        assert self._transport is not None
        if next(self._left, None) is not None:
            self._transport.write(self._request)
        elif not self.done.done():
            self.done.set_result(None)
            self._transport.close()

    def _is_whole(self) -> bool:
        head, _, body = self._parts[0].partition(b"\r\n\r\n")
        if b"chunked" in head:
            return b"".join(self._parts[-2:]).endswith(b"0\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return len(body) + sum(map(len, self._parts[1:])) >= length


async def drive(request: bytes, num_requests: int, concurrency: int, port: int) -> list[bytes]:
    """Send a request many times over connections that stay open; return the answers."""
    loop, answers = asyncio.get_running_loop(), list[bytes]()
    left = iter(range(num_requests))
    made = [
        await loop.create_connection(lambda: _Connection(request, left, answers), "127.0.0.1", port)
        for _ in range(concurrency)
    ]
    await asyncio.gather(*(connection.done for _, connection in made))
    return answers
