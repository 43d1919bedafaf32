"""Connections to a primary that a few lines play: when they are kept, and what becomes of answers that come early."""

import asyncio
import contextlib

import pytest

from peftserve.server.api.processes.connections import PrimaryConnections, PrimaryGone

HEADERS = [(b"host", b"primary")]


@contextlib.asynccontextmanager
async def primary(tmp_path, answer):
    """Play a primary that says `answer` to each head of a request. Yields its connections, and clients."""
    heads, serving = [], []

    async def serve(reader, writer):
        heads.append(0)
        serving.append(asyncio.current_task())
        number = len(heads) - 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                heads[number] += 1
                writer.write(answer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, tmp_path / "socket")
    connections = PrimaryConnections(tmp_path / "socket")
    try:
        yield heads, connections
    finally:
        connections.close()
        server.close()
        await asyncio.gather(*serving, return_exceptions=True)


async def stalling():
    yield b"half"
    await asyncio.Event().wait()


async def ask(connections, body=None):
    async with connections.one() as connection:
        length = b"100" if body else b"0"
        connection.ask("POST", b"/", [*HEADERS, (b"content-length", length)])
        sending = asyncio.create_task(connection.send_body(body))
        head = await connection.head()
        told = b"".join([piece async for piece in connection.pieces()])
        if body is not None:
            sending.cancel()
        await asyncio.wait({sending})
    return head.status_code, told


ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"


async def test_a_connection_is_kept_for_the_next_request(tmp_path):
    async with primary(tmp_path, ANSWER) as (heads, connections):
        for _ in range(3):
            assert await ask(connections) == (200, b"hi")
        assert heads == [3]
        await asyncio.gather(*(ask(connections) for _ in range(30)))
        assert sum(heads) == 33
        assert len(heads) == 30, "none has waited for another"


async def test_one_whose_request_was_not_whole_is_closed(tmp_path):
    async with primary(tmp_path, ANSWER) as (heads, connections):
        assert await ask(connections, stalling()) == (200, b"hi")
        assert await ask(connections) == (200, b"hi")
        assert heads == [1, 1]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nhi"])
async def test_one_that_the_primary_closes_is_not_used_again(tmp_path, answer):
    async with primary(tmp_path, answer) as (heads, connections):
        assert await ask(connections) == (200, b"hi")
        assert await ask(connections) == (200, b"hi")
        assert heads == [1, 1]


@pytest.mark.parametrize("answer", [b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"])
async def test_what_is_no_answer_is_no_primary(tmp_path, answer):
    async with primary(tmp_path, answer) as (_, connections):
        with pytest.raises(PrimaryGone):
            await ask(connections)


async def test_without_a_socket_there_is_no_primary(tmp_path):
    with pytest.raises(PrimaryGone):
        await ask(PrimaryConnections(tmp_path / "none"))
