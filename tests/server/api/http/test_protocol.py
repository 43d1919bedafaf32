"""Connections of a real server over real sockets, to which raw bytes are sent."""

import asyncio
import contextlib
import json
import socket
import struct

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peftserve.server.api.http.parser import MAX_HEADERS, MAX_PIPELINED

LIMIT = 4096
OFF = {"timeout_headers": 0.0, "timeout_body": 0.0, "timeout_idle": 0.0, "timeout_write": 0.0}
GOOD = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
BODY = json.dumps({"prompt": [5], "max_tokens": 2}).encode()
CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def post(body=BODY, length=None, headers=b""):
    length = len(body) if length is None else length
    return b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n%bContent-Length: %d\r\n\r\n%b" % (
        headers,
        length,
        body,
    )


def chunk(data, extension=b""):
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


class Raw:
    """One connection."""

    def __init__(self, server, reader, writer):
        self.server, self.reader, self.writer = server, reader, writer

    async def send(self, *pieces):
        """Each piece by itself. What the server does not take any more is dropped."""
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                self.writer.write(piece)
                await self.writer.drain()
                await asyncio.sleep(0)

    async def trickle(self, piece, pause):
        """For ever."""
        while not self.reader.at_eof():
            await self.send(piece)
            await asyncio.sleep(pause)

    async def read(self):
        """All that comes until the server closes the connection."""
        received = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while piece := await self.reader.read(1 << 16):
                    received += piece
        return received

    async def answers(self):
        """The answers until the close: httpx's, as the envelope's check wants them."""
        return list(split(await self.read()))

    async def answer(self):
        """The next one. The connection stays open."""
        async with asyncio.timeout(60):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            (answer,) = split(head + await self.reader.readexactly(length))
            return answer


def split(received):
    """Whole answers of a declared length, one behind the other."""
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = [tuple(line.split(b": ", 1)) for line in lines[1:]]
        if lines[0].split()[1] == b"100":
            received = rest
            continue
        length = int(dict(headers)[b"content-length"])
        yield httpx.Response(int(lines[0].split()[1]), headers=headers, content=rest[:length])
        received = rest[length:]


async def connect(server, **options):
    host, port = server.url.removeprefix("http://").split(":")
    return Raw(server, *await asyncio.open_connection(host, int(port), **options))


@pytest.fixture
async def make_raw():
    """`await make_raw(server)` opens a connection; all are closed at the end."""
    opened = []

    async def make(server, **options):
        opened.append(await connect(server, **options))
        return opened[-1]

    yield make
    for raw in opened:
        raw.writer.transport.abort()


@pytest.fixture
async def bounded(make_server):
    async with make_server(limit_header_bytes=LIMIT, **OFF) as server:
        yield server


async def works(server):
    """A good request gets its answer, by a connection of its own: a kept one may be idle for too long just now."""
    answer = await server.http.post("/v1/completions", content=BODY, headers={"Connection": "close"})
    assert answer.status_code == 200, answer.text
    return True


async def refusals(server):
    """Reason to number."""
    lines = (await server.http.get("/metrics", headers={"Connection": "close"})).text.splitlines()
    prefix = 'peftserve_connections_refused_total{reason="'
    found = [line.removeprefix(prefix).split('"} ') for line in lines if line.startswith(prefix)]
    return {reason: float(number) for reason, number in found}


def header(size, name=b"x"):
    """One header of `size` bytes, as they are counted."""
    return name + b": " + b"v" * (size - len(name) - 4) + b"\r\n"


HOST = b"Host: localhost\r\n"
TOO_LARGE = {
    "url": (b"GET /" + b"a" * LIMIT + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "url_too_long"),
    "query": (b"GET /health?" + b"a" * LIMIT + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "url_too_long"),
    "header": (b"GET /health HTTP/1.1\r\n" + header(LIMIT) + HOST + b"\r\n", 431, "headers_too_large"),
    "name": (b"GET /health HTTP/1.1\r\n" + b"n" * LIMIT + b": v\r\n" + HOST + b"\r\n", 431, "headers_too_large"),
    "bytes": (b"GET /health HTTP/1.1\r\n" + header(LIMIT // 8) * 8 + HOST + b"\r\n", 431, "headers_too_large"),
    "together": (b"GET /" + b"a" * 2500 + b" HTTP/1.1\r\n" + header(2500) + b"\r\n", 431, "headers_too_large"),
    "number": (b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n", 431, "too_many_headers"),
    "blank lines": (b"\r\n" * LIMIT * 16, 431, "headers_too_large"),
    "blanks": (b"GET /health HTTP/1.1\r\nx:" + b" " * LIMIT * 16, 431, "headers_too_large"),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1 << 20, 700, 1])
@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_too_much_is_refused_however_it_comes(bounded, make_raw, check_envelope, kind, size):
    request, status, code = TOO_LARGE[kind]
    raw = await make_raw(bounded)
    if size == 1:
        raw.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = request[: 3 * LIMIT]
    await raw.send(*(request[i : i + size] for i in range(0, len(request), size)))
    (answer,) = await raw.answers()
    check_envelope(answer, status, code)
    assert answer.headers["connection"] == "close"
    assert await works(bounded)


async def test_as_much_as_is_allowed_is_taken(bounded, make_raw):
    url = b"/v1/models?" + b"a" * 500
    rest = LIMIT - len(url) - (len(HOST) + 1)
    for headers in (header(rest), b"a: b\r\n" * (MAX_HEADERS - 1)):
        raw = await make_raw(bounded)
        request = b"GET " + url + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n"
        for _ in range(3):
            await raw.send(request[:1000], request[1000:])
            assert (await raw.answer()).status_code == 200


async def test_a_large_body_is_no_head(bounded, make_raw):
    raw = await make_raw(bounded)
    padded = BODY + b" " * (300 << 10)
    await raw.send(post(padded) + post(padded))
    assert [(await raw.answer()).status_code for _ in range(2)] == [200, 200]
    await raw.send(CHUNKED, *(chunk(padded[i : i + 50]) for i in range(0, 5000, 50)), b"0\r\n\r\n")
    assert (await raw.answer()).status_code == 200


@pytest.mark.parametrize("kind", ["url", "header", "number"])
async def test_a_request_behind_a_good_one_is_bounded_too(bounded, make_raw, engine, check_envelope, kind):
    engine.delay = 0.02
    request, status, code = TOO_LARGE[kind]
    raw = await make_raw(bounded)
    await raw.send(post() + request)
    good, refused = await raw.answers()
    assert good.status_code == 200
    check_envelope(refused, status, code)


async def test_trailers_are_bounded_and_change_nothing(make_server, make_raw, check_envelope):
    async with make_server(limit_header_bytes=LIMIT, api_keys=("key",), **OFF) as server:
        key = b"Authorization: Bearer key\r\n"
        raw = await make_raw(server)
        await raw.send(CHUNKED.replace(HOST, HOST + key) + chunk(BODY) + b"0\r\n", b"Trailer: a\r\n", b"\r\n")
        assert (await raw.answer()).status_code == 200
        await raw.send(CHUNKED + chunk(BODY) + b"0\r\n" + key + b"\r\n")
        assert (await raw.answer()).status_code == 401
        for trailers in (header(LIMIT + 1), header(300) * 20, b"a: b\r\n" * (MAX_HEADERS + 1)):
            raw = await make_raw(server)
            await raw.send(CHUNKED.replace(HOST, HOST + key) + chunk(BODY) + b"0\r\n" + trailers + b"\r\n")
            check_envelope((await raw.answers())[0], 431)


async def test_what_chunks_carry_beside_the_body_is_bounded(bounded, make_raw, check_envelope):
    raw = await make_raw(bounded)
    await raw.send(CHUNKED, *(chunk(BODY[i : i + 1], b";a=b") for i in range(len(BODY))), b"0;c\r\n\r\n")
    assert (await raw.answer()).status_code == 200
    await raw.send(CHUNKED, *[chunk(b" ")] * 2000, b"1;", *[b"e" * 1000] * 100)
    check_envelope((await raw.answers())[0], 400, "chunks_too_large")
    raw = await make_raw(bounded)
    await raw.send(CHUNKED, *[chunk(b" ", b";" + b"e" * 300)] * 100)
    check_envelope((await raw.answers())[0], 400, "chunks_too_large")


async def test_requests_that_wait_for_others_are_few(bounded, make_raw, engine, check_envelope):
    engine.delay = 0.02
    raw = await make_raw(bounded)
    await raw.send(post() + GOOD * MAX_PIPELINED)
    for _ in range(1 + MAX_PIPELINED):
        assert (await raw.answer()).status_code == 200
    await raw.send(post() + GOOD * 5 * MAX_PIPELINED)
    *good, refused = await raw.answers()
    assert [answer.status_code for answer in good] == [200] * (1 + MAX_PIPELINED)
    check_envelope(refused, 429, "too_many_pipelined_requests")
    assert refused.headers["retry-after"] == "1"


NOT_HTTP = {
    "junk": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
    "method": b"FLY /health HTTP/1.1\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "length and chunks": CHUNKED.replace(HOST, HOST + b"Content-Length: 5\r\n") + chunk(BODY) + b"0\r\n\r\n",
    "length": b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    "huge length": b"POST /v1/completions HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n",
    "chunk": CHUNKED + b"zz\r\nabc\r\n",
    "header": b"GET /health HTTP/1.1\r\na\x00b: c\r\n\r\n",
    "path": "GET /ü HTTP/1.1\r\n\r\n".encode(),
    "no path": b"CONNECT a:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "lone line feeds": b"GET /health HTTP/1.1\nHost: localhost\n\n",
}


@pytest.mark.parametrize("kind", NOT_HTTP)
async def test_what_is_not_http_is_a_400_in_the_envelope(bounded, make_raw, check_envelope, kind):
    raw = await make_raw(bounded)
    await raw.send(NOT_HTTP[kind])
    raw.writer.write_eof()
    (answer,) = await raw.answers()
    if kind != "lone line feeds" or answer.status_code != 200:
        check_envelope(answer, 400, "invalid_http")
    assert await works(bounded)


async def test_junk_behind_a_good_request_comes_after_its_answer(bounded, make_raw, engine, check_envelope):
    engine.delay = 0.02
    raw = await make_raw(bounded)
    await raw.send(post() + NOT_HTTP["junk"])
    good, refused = await raw.answers()
    assert good.status_code == 200
    check_envelope(refused, 400, "invalid_http")
    raw = await make_raw(bounded)
    await raw.send(post() + NOT_HTTP["chunk"])
    good, refused = await raw.answers()
    assert good.status_code == 200
    check_envelope(refused, 400, "invalid_http")


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c"])
async def test_an_upgrade_is_not_granted_and_the_connection_goes_on(bounded, make_raw, protocol):
    upgrade = b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    raw = await make_raw(bounded)
    for _ in range(2):
        await raw.send(post(headers=upgrade) + GOOD.replace(HOST, HOST + upgrade) + GOOD, post())
        await raw.send(CHUNKED.replace(HOST, HOST + upgrade), chunk(BODY[:9]), chunk(BODY[9:]) + b"0\r\na: b\r\n\r\n")
        await raw.send(post(GOOD, headers=upgrade), post(headers=upgrade))  # a body that looks like a request
        assert [(await raw.answer()).status_code for _ in range(7)] == [*[200] * 5, 400, 200]


async def test_a_client_that_expects_to_be_told_is_told(bounded, make_raw):
    raw = await make_raw(bounded)
    await raw.send(post(b"", len(BODY), b"Expect: 100-continue\r\n"))
    async with asyncio.timeout(60):
        assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await raw.send(BODY)
    assert (await raw.answer()).status_code == 200


async def test_http_1_0_is_answered_and_closed(bounded, make_raw):
    raw = await make_raw(bounded)
    await raw.send(b"GET /v1/models HTTP/1.0\r\n\r\n")
    (answer,) = await raw.answers()
    assert answer.status_code == 200


QUICK = {"timeout_headers": 0.2, "timeout_body": 0.2, "timeout_idle": 0.2, "timeout_write": 0.2}


async def test_who_sends_nothing_is_closed(make_server, make_raw, until):
    async with make_server(**OFF | {"timeout_headers": 0.2}) as server:
        assert await (await make_raw(server)).read() == b""
        assert (await refusals(server))["timeout_headers"] == 1


@pytest.mark.parametrize("pause", [0.01, 60])
async def test_a_head_has_its_time_in_all(make_server, make_raw, check_envelope, pause):
    async with make_server(**OFF | {"timeout_headers": 0.2}) as server:
        raw = await make_raw(server)
        await raw.send(GOOD)
        assert (await raw.answer()).status_code == 200
        await raw.send(GOOD[:-2])
        trickling = asyncio.create_task(raw.trickle(b"x: y\r\n", pause))
        (answer,) = await raw.answers()
        check_envelope(answer, 408, "headers_timeout")
        trickling.cancel()


@pytest.mark.parametrize("request_", [post(BODY[:5], 500), CHUNKED + chunk(BODY), CHUNKED + chunk(BODY) + b"5;a"])
@pytest.mark.parametrize("pause", [0.05, 60])
async def test_a_body_that_does_not_come_to_its_end_is_a_408(make_server, make_raw, check_envelope, request_, pause):
    async with make_server(**OFF | {"timeout_body": 0.2}) as server:
        raw = await make_raw(server)
        await raw.send(request_)
        trickling = asyncio.create_task(raw.trickle(b"x" if b"Length" in request_ else chunk(b" "), pause))
        answers = await raw.answers()
        trickling.cancel()
        if request_.endswith(b"a") and pause < 1:
            check_envelope(answers[0], 400)  # the rest of such a chunk is none
        else:
            check_envelope(answers[0], 408, "body_timeout")
            assert (await refusals(server))["timeout_body"] == 1
        assert server.services.admission.in_flight == 0


async def test_a_body_that_comes_slowly_but_comes_is_taken(make_server, make_raw):
    async with make_server(**OFF | {"timeout_body": 0.4}) as server:
        raw = await make_raw(server)
        await raw.send(post(b"", len(BODY)))
        for i in range(0, len(BODY), 4):
            await raw.send(BODY[i : i + 4])
            await asyncio.sleep(0.08)
        assert (await raw.answer()).status_code == 200


async def test_who_asks_for_nothing_more_is_closed_and_who_waits_for_an_answer_is_not(make_server, make_raw, engine):
    engine.delay = 0.4
    async with make_server(**QUICK) as server:
        raw = await make_raw(server)
        await raw.send(post())
        (answer,) = await raw.answers()
        assert answer.status_code == 200
        assert (await refusals(server)) == {"timeout_idle": 1}


async def test_the_rest_of_a_body_that_nobody_reads_has_its_time(make_server, make_raw):
    async with make_server(body_limit=1000, **OFF | {"timeout_body": 0.2}) as server:
        raw = await make_raw(server)
        await raw.send(post(b"x" * 5, 1 << 30))
        trickling = asyncio.create_task(raw.trickle(b"x" * 5000, 0.01))
        (answer,) = await raw.answers()
        assert answer.status_code == 413
        trickling.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("reads", [False, True])
async def test_who_does_not_read_loses_its_place(make_server, engine, model_info, tokenizer, until, reads):
    engine.info = model_info(tokenizer=tokenizer.to_str(), max_model_len=1 << 20)
    engine.delay = 0.0002  # whose tokens leave the loop time for a client
    async with make_server(**OFF | {"timeout_write": 4.0 if reads else 1.2}) as server:
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, (128 << 10) if reads else 4096)
            connection.setblocking(False)
            host, port = server.url.removeprefix("http://").split(":")
            await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
            body = json.dumps({"prompt": [5], "max_tokens": 1 << 19, "stream": True, "logprobs": 20, "n": 8}).encode()
            connection.send(post(body))
            await until(lambda: engine.running)
            if reads:  # slowly, of what is megabytes in the system's own buffers
                for _ in range(250):
                    await asyncio.get_running_loop().sock_recv(connection, 40_000)
                    await asyncio.sleep(0.02)
                assert engine.running, (await refusals(server), engine.aborted)
            async with asyncio.timeout(60):
                while engine.running:
                    await asyncio.sleep(0.02)
            assert len(engine.aborted) == 8
            await until(lambda: server.services.admission.in_flight == 0)
            assert server.services.adapters.leases.counts() == {}
            assert (await refusals(server))["timeout_write"] == 1


async def test_an_answer_that_is_not_read_is_dropped_with_its_connection(make_server, make_raw, until):
    async with make_server(**OFF | {"timeout_write": 0.2}) as server:
        raw = await make_raw(server, limit=1024)
        raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.writer.transport.pause_reading()
        async with asyncio.timeout(60):
            while not (await refusals(server)).get("timeout_write"):
                if not raw.writer.transport.get_write_buffer_size():
                    await raw.send(GOOD.replace(b"/v1/models", b"/openapi.json") * 20)
                await asyncio.sleep(0.02)


async def test_beyond_the_limit_of_connections_there_is_a_503_and_health(
    make_server, make_raw, engine, check_envelope, until
):
    engine.delay = 60
    async with make_server(limit_connections=2, **OFF) as server:
        busy = [await make_raw(server) for _ in range(2)]
        for raw in busy:
            await raw.send(post())
        await until(lambda: len(engine.running) == 2)
        raw = await make_raw(server)
        await raw.send(post())
        (answer,) = await raw.answers()
        check_envelope(answer, 503, "too_many_connections")
        assert answer.headers["retry-after"] == "1"
        for path in ("/health", "/health/live", "/health/ready", "/metrics"):
            assert (await server.http.get(path)).status_code == 200
        assert (await refusals(server))["connections"] == 1
        busy[0].writer.close()
        await until(lambda: len(engine.running) == 1)
        engine.delay = 0
        assert await works(server)


async def test_idle_connections_keep_nobody_out(make_server, make_raw):
    async with make_server(limit_connections=5, **OFF) as server:
        idle = [await make_raw(server) for _ in range(50)]
        for raw in idle[:5]:
            assert await raw.read() == b""
        assert await works(server)
        for raw in idle[5:46]:
            assert await raw.read() == b""
        await idle[-1].send(GOOD)
        assert (await idle[-1].answer()).status_code == 200


async def test_one_address_has_its_share(make_server, make_raw, check_envelope):
    async with make_server(limit_connections_per_address=2, **OFF) as server:
        held = [await make_raw(server) for _ in range(2)]
        raw = await make_raw(server)
        await raw.send(post())
        (answer,) = await raw.answers()
        check_envelope(answer, 503, "too_many_connections")
        assert "this address" in answer.text
        other = await make_raw(server, local_addr=("127.0.0.2", 0))
        await other.send(post())
        assert (await other.answer()).status_code == 200
        for raw in held:
            await raw.send(GOOD)
            assert (await raw.answer()).status_code == 200


async def test_a_client_that_resets_its_connection_leaves_nothing(make_server, make_raw, engine, until):
    engine.delay = 60
    async with make_server(**OFF) as server:
        for request in (GOOD[:9], post(BODY[:5], 500), post(), post() + GOOD[:9]):
            raw = await make_raw(server)
            linger = struct.pack("ii", 1, 0)
            raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            await raw.send(request)
            await asyncio.sleep(0.01)
            raw.writer.transport.abort()
        await until(lambda: not engine.running)
        engine.delay = 0
        assert await works(server)


PARTS = [
    *(
        b"GET ",
        b"POST ",
        b"/v1/models",
        b"/v1/completions",
        b" HTTP/1.1\r\n",
        b" HTTP/1.0\r\n",
        b"\r\n",
        b"\n",
        b"Host: localhost",
    ),
    *(b"Content-Length: 5", b"Transfer-Encoding: chunked", b"Expect: 100-continue", b"Connection: Upgrade", b": "),
    *(b"Upgrade: websocket", b"Connection: close", b"5\r\nabcde\r\n", b"0\r\n\r\n", b";a=b", b"\x00\xff", b"a" * 5000),
    *(GOOD, post(), CHUNKED, BODY),
]


@given(st.lists(st.sampled_from(PARTS) | st.binary(max_size=8), max_size=12), st.booleans())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_comes_the_server_answers_or_closes_and_goes_on(fuzzed, parts, apart):
    fuzzed(parts if apart else [b"".join(parts)])


@pytest.fixture
def fuzzed(make_server):
    """Sends pieces to a server, and then a good request over another connection."""
    with asyncio.Runner() as runner:
        serving = make_server(limit_header_bytes=LIMIT, **QUICK)
        server = runner.run(serving.__aenter__())

        async def send(pieces):
            raw = await connect(server)
            await raw.send(*pieces)
            received = await raw.read()
            assert not received or received.startswith(b"HTTP/1.1 "), received
            assert b" 500 " not in received
            raw.writer.transport.abort()
            assert await works(server)

        yield lambda pieces: runner.run(send(pieces))
        runner.run(serving.__aexit__(None, None, None))
