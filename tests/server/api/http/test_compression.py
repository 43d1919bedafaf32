"""What goes out of the middleware for what comes in, message by message."""

import gzip

import pytest

from peftserve.server.api.http.compression import ON_LOOP, SMALLEST, Compression, takes_gzip


@pytest.mark.parametrize(
    ("accepted", "takes"),
    [
        ([], False),
        ([""], False),
        (["gzip"], True),
        (["GZIP"], True),
        (["deflate", "gzip"], True),
        (["gzip;q=0"], False),
        (["gzip; q=0.000, identity"], False),
        (["gzip;q=0.001"], True),
        (["*"], True),
        (["*;q=0"], False),
        (["gzip;q=0, *"], False),
        (["gzipped"], False),
        (["x-gzip"], True),
        (["gzip;q=nonsense"], False),
        ([",;=,;q=1"], False),
    ],
)
def test_who_takes_it(accepted, takes):
    assert takes_gzip(accepted) is takes


async def answered(start, *pieces, accept=b"gzip", version="1.1"):
    """The status line's message and the bodies that come out."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [], **start})
        for number, piece in enumerate(pieces, 1):
            await send({"type": "http.response.body", "body": piece, "more_body": number < len(pieces)})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": version, "headers": [(b"accept-encoding", accept)]}
    await Compression(app)(scope, None, send)
    return dict(sent[0]["headers"]), b"".join(message["body"] for message in sent[1:])


def head(kind=b"application/json", *more):
    return {"headers": [(b"content-type", kind), *more]}


@pytest.mark.parametrize("size", [SMALLEST, ON_LOOP + 1])
async def test_pieces_of_unknown_and_of_declared_length(size):
    pieces = [b"a" * size, b"", b"b" * size, b"c"]
    for more in ((), ((b"content-length", b"%d" % sum(map(len, pieces))), (b"etag", b'"x"'), (b"accept-ranges", b"b"))):
        headers, body = await answered(head(b"text/css", *more), *pieces)
        assert gzip.decompress(body) == b"".join(pieces)
        assert headers.keys() == {b"content-type", b"content-encoding", b"vary"} | ({b"etag"} if more else set())
        assert headers.get(b"etag") in (None, b'W/"x"')


@pytest.mark.parametrize(
    "start",
    [
        head(b"text/event-stream"),
        head(b"application/octet-stream"),
        head(b"image/png"),
        head(b"application/json", (b"content-encoding", b"br")),
        head(b"application/json", (b"cache-control", b"no-transform")),
        {**head(b"text/plain", (b"content-range", b"bytes 0-1/2")), "status": 206},
    ],
)
async def test_what_is_left_as_it_is(start):
    headers, body = await answered(start, b"a" * SMALLEST, b"b")
    assert headers == dict(start["headers"])
    assert body == b"a" * SMALLEST + b"b"


async def test_who_does_not_take_it_gets_it_whole_and_caches_are_told():
    for accept, version in ((b"br", "1.1"), (b"gzip", "1.0")):
        headers, body = await answered(head(), b"a" * SMALLEST, accept=accept, version=version)
        assert (headers[b"vary"], body) == (b"Accept-Encoding", b"a" * SMALLEST)
    headers, body = await answered(head(), b"{}")
    assert (headers, body) == ({b"content-type": b"application/json"}, b"{}")
