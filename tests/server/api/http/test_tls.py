"""A server that speaks TLS only: the same limits as without, from the first byte of a connection."""

import asyncio
import contextlib
import json
import ssl

import httpx
import pytest

from peftserve.server.api.http.tls import TlsFiles
from tests.server.api.certificates import Authority

BODY = {"prompt": [5], "max_tokens": 3}
PATIENCE = 60  # seconds


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def make_tls_server(make_server, authority):
    def make(**fields):
        certificate, key = authority.issue("server")
        return make_server(ssl_certfile=certificate, ssl_keyfile=key, **fields)

    return make


def trusting(authority, client=None):
    context = ssl.create_default_context(cafile=authority.file)
    if client is not None:
        context.load_cert_chain(*client)
    return context


async def connect(server, **options):
    host, port = server.url.removeprefix("https://").split(":")
    return await asyncio.open_connection(host, int(port), **options)


async def read_to_the_end(reader):
    received = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        async with asyncio.timeout(PATIENCE):
            while piece := await reader.read(1 << 16):
                received += piece
    return received


async def refusals(server, reason):
    text = (await server.http.get("/metrics")).text
    return sum(float(line.split()[1]) for line in text.splitlines() if f'refused_total{{reason="{reason}"}}' in line)


async def test_pages_are_of_the_servers_own_origin_with_its_scheme(make_tls_server):
    async with make_tls_server() as server:

        async def status(**headers):
            return (await server.http.get("/v1/models", headers=headers)).status_code

        assert await status(origin=server.url) == 200
        assert await status(origin=server.url.replace("https", "http")) == 403
        assert await status(host="evil.example") == 403


async def test_requests_streams_and_uploads(make_tls_server, authority):
    async with (
        make_tls_server() as server,
        httpx.AsyncClient(base_url=server.url, verify=trusting(authority), timeout=PATIENCE) as http,
    ):
        assert (await http.post("/v1/completions", json=BODY)).status_code == 200
        assert (await http.post("/v1/completions", json={**BODY, "stream": True})).text.endswith("data: [DONE]\n\n")
        assert (await server.upload("sql", rank=4096)).status_code == 201
        assert (await http.get("/v1/models")).json()["data"][1]["id"] == "sql"
        asking = (http.post("/v1/completions", json={**BODY, "n": 4}) for _ in range(3))
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 3


async def test_who_speaks_plain_http_or_says_nothing_is_closed_and_counted(make_tls_server):
    async with make_tls_server(timeout_headers=0.3) as server:
        reader, writer = await connect(server)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"HTTP" not in await read_to_the_end(reader)
        writer.transport.abort()
        silent = [await connect(server) for _ in range(5)]
        for reader, writer in silent:
            assert await read_to_the_end(reader) == b""
            writer.transport.abort()
        assert await refusals(server, "tls") == 6


async def test_limits_hold_before_and_after_both_have_agreed(make_tls_server, authority, until):
    async with make_tls_server(limit_connections=3, timeout_headers=300.0, timeout_body=0.3) as server:
        silent = [await connect(server) for _ in range(8)]  # of which the oldest give way
        trusted = {"ssl": trusting(authority), "server_hostname": "localhost"}
        reader, writer = await connect(server, **trusted)
        body = json.dumps(BODY).encode()
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        assert (await asyncio.wait_for(reader.readline(), PATIENCE)).startswith(b"HTTP/1.1 200")
        writer.transport.abort()
        gone = [asyncio.create_task(read_to_the_end(reader)) for reader, _ in silent]
        await until(lambda: sum(task.done() for task in gone) >= 5)
        for task in gone:
            task.cancel()
        for _, silent_writer in silent:
            silent_writer.transport.abort()
        for head, said in [
            (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"HTTP/1.1 414 "),
            (b"junk\r\n\r\n", b"HTTP/1.1 400 "),
            (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 408 "),
        ]:
            reader, writer = await connect(server, **trusted)
            writer.write(head)
            answer = await read_to_the_end(reader)
            assert answer.startswith(said)
            assert b"\r\nx-request-id: " in answer
            assert b'{"error":{' in answer
            writer.transport.abort()


async def test_clients_show_a_certificate_where_it_is_asked_for(make_tls_server, authority, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other").issue("stranger")
    async with make_tls_server(ssl_ca_certs=authority.file) as server:
        for client, welcome in [(None, False), (stranger, False), (authority.issue("client"), True)]:
            trusted = trusting(authority, client)
            async with httpx.AsyncClient(base_url=server.url, verify=trusted, timeout=PATIENCE) as http:
                if welcome:
                    assert (await http.get("/health")).status_code == 200
                else:
                    with pytest.raises(httpx.TransportError):
                        await http.get("/health")


async def test_what_comes_with_the_end_of_the_agreement_is_not_lost(make_tls_server, authority):
    """The request goes out in one piece with the client's last message of the handshake."""
    async with make_tls_server() as server:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting(authority).wrap_bio(incoming, outgoing, server_hostname="localhost")
        reader, writer = await connect(server)

        async def until_done(step):
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await asyncio.wait_for(reader.read(1 << 16), PATIENCE))

        try:
            await until_done(client.do_handshake)
            client.write(b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await until_done(lambda: client.read(1 << 16))).startswith(b"HTTP/1.1 200 OK")
        finally:
            writer.transport.abort()


def test_files_that_do_not_do_are_named(tmp_path, authority):
    certificate, key = authority.issue("server", password="secret")
    other = authority.issue("other")[1]
    assert TlsFiles(certificate, key, "secret").context().minimum_version >= ssl.TLSVersion.TLSv1_2
    faults = {
        "--ssl-certfile .*server.pem and --ssl-keyfile .*server.key cannot": TlsFiles(certificate, key),
        "--ssl-keyfile .*other.key cannot be used: key values mismatch": TlsFiles(certificate, other),
        "--ssl-certfile .*authority.pem cannot": TlsFiles(authority.file),
        "--ssl-certfile .*nothing cannot be used: No such file": TlsFiles(tmp_path / "nothing"),
        "--ssl-ca-certs .*other.key cannot": TlsFiles(certificate, key, "secret", other),
    }
    for message, files in faults.items():
        with pytest.raises(OSError, match=message):
            files.context()
