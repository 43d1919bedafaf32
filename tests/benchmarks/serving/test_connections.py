"""Answers are read to their end over few connections, however they are framed and torn."""

import asyncio
from collections.abc import Sequence

import pytest

from benchmarks.serving.connections import drive

SIZED = [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na", b"bcd"]
CHUNKED = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n", b"1\r\nb\r\n0\r", b"\n\r\n"]


async def answers(parts: Sequence[bytes], num_requests: int) -> tuple[list[bytes], int]:
    """The answers, and how many connections there were."""
    handled: list[asyncio.Task[None]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(len(b"GET")):
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.001)
        writer.close()
        await writer.wait_closed()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handled.append(asyncio.create_task(answer(reader, writer)))

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        found = await drive(b"GET", num_requests, 2, server.sockets[0].getsockname()[1])
        await asyncio.gather(*handled)
    return found, len(handled)


@pytest.mark.parametrize("parts", [SIZED, CHUNKED], ids=["sized", "chunked"])
async def test_every_answer_is_whole(parts: list[bytes]) -> None:
    found, connections = await answers(parts, 5)
    assert found == [b"".join(parts)] * 5
    assert connections == 2


async def test_a_server_that_leaves_is_an_error() -> None:
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        with pytest.raises(ConnectionError):
            await drive(b"GET", 1, 1, server.sockets[0].getsockname()[1])
