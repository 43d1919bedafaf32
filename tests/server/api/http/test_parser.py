"""What the parser is given and keeps, with a transport that only takes notes."""

import asyncio
import tracemalloc
from types import SimpleNamespace

import pytest
import uvicorn
from uvicorn.server import ServerState

from peftserve.server.api.http.parser import BoundedHttp

LIMIT = 4096
READ = 256_000  # bytes that the event loop reads at once


class _Transport:
    def get_extra_info(self, name):
        return None

    def is_closing(self):
        return False

    def pause_reading(self):
        pass


class _Bounded(BoundedHttp):
    dropped = 0

    def refuse(self, refusal):
        self.refusal = refusal

    def drop(self, number):
        self.dropped += number


async def _silent(scope, receive, send):
    await asyncio.Event().wait()


class _Counting:
    """A parser that says how much it was given."""

    def __init__(self, parser):
        self._parser = parser
        self.fed = 0

    def feed_data(self, data):
        self.fed += len(data)
        self._parser.feed_data(data)

    def __getattr__(self, name):
        return getattr(self._parser, name)


@pytest.fixture
async def connection():
    config = uvicorn.Config(_silent, log_config=None, ws="none", lifespan="off")
    config.load()
    state = ServerState()
    connection = _Bounded(config=config, server_state=state, app_state={})
    connection.parser = _Counting(connection.parser)
    connection.connection_made(_Transport())
    connection.bound(LIMIT)
    yield connection
    for task in state.tasks:
        task.cancel()
    await asyncio.gather(*state.tasks, return_exceptions=True)


ENDLESS = {
    "url": (b"GET /", 414),
    "header": (b"GET / HTTP/1.1\r\nx: ", 431),
    "name": (b"GET / HTTP/1.1\r\n", 431),
    "trailer": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx: ", 400),
    "extension": (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;", 400),
}


@pytest.mark.parametrize("size", [READ, 1000])
@pytest.mark.parametrize("kind", ENDLESS)
async def test_of_what_does_not_end_next_to_nothing_is_parsed_or_kept(connection, kind, size):
    begin, status = ENDLESS[kind]
    connection.data_received(begin)
    piece = b"a" * size
    tracemalloc.start()
    times = (48 << 20) // size
    for _ in range(times):
        connection.data_received(piece)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert connection.refusal.error.status_code == status
    in_body = READ if kind in ("trailer", "extension") else 0  # which is not cut into pieces
    assert connection.parser.fed <= 3 * LIMIT + in_body
    assert connection.dropped >= times * size - 3 * LIMIT - 2 * READ
    assert kept < 8 * LIMIT + 2 * in_body


async def test_a_small_head_behind_a_large_body_is_its_own(connection):
    body = b"b" * (2 * READ)
    request = b"POST / HTTP/1.1\r\nx: " + b"v" * 3000 + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(5):
        for i in range(0, len(request), 10_000):
            connection.data_received(request[i : i + 10_000])
    assert connection.refusal is None
    assert connection.requests == 5
    assert connection.received == 5 * len(body)
    assert not connection.has_begun
    connection.data_received(request[:10])
    assert connection.has_begun


async def test_without_a_bound_anything_goes(connection):
    unbounded = SimpleNamespace(head_limit=BoundedHttp.head_limit, max_headers=BoundedHttp.max_headers)
    vars(connection).update(vars(unbounded))
    connection.data_received(
        b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\n" + (b"x: " + b"v" * 900 + b"\r\n") * 200 + b"\r\n"
    )
    assert connection.refusal is None
    assert connection.requests == 1


async def test_many_small_chunks_earn_no_credit_for_a_large_extension(connection):
    connection.data_received(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(100):
        connection.data_received(b"1\r\na\r\n" * 500)
    assert connection.refusal is None
    connection.data_received(b"1;")
    for _ in range(20):
        connection.data_received(b"e" * 1000)
    assert connection.refusal.error.status_code == 400
    assert connection.dropped >= 14_000
