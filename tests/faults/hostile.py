"""Clients that are slow, stuck, greedy or gone, beside one that must not notice. Each speaks to the server's socket."""

import asyncio
import contextlib
import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from .subject import BASE, OPTIONS, PATIENCE, STAYING, Subject, ask, tokens, until

MOST_READ = 1 << 20  # bytes of an answer that anyone here takes
CROWD = 8  # connections of one kind at once
FLOOD = 150  # connections, where the server takes 64
DRIP = 0.2  # seconds between two bytes of one who has time

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Attack = Callable[[Reader, Writer, random.Random], Awaitable[None]]


def _request(body: dict[str, Any], *, sent: int | None = None) -> bytes:
    """Return a completion's request. sent: how many bytes of its body are there."""
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(text)}"
    return head.encode() + b"\r\n\r\n" + text[:sent]


def _stream(draw: random.Random) -> dict[str, Any]:
    model = draw.choice((BASE, *STAYING))
    return {"model": model, **OPTIONS, "max_tokens": 200, "n": 4, "temperature": 1, "stream": True}


async def _drip(reader: Reader, writer: Writer, first: bytes) -> None:
    """Send a beginning, and then byte for byte until the server has enough of it."""
    writer.write(first)
    closed = asyncio.ensure_future(reader.read(MOST_READ))
    while not closed.done() and not writer.is_closing():
        writer.write(b"x")
        await asyncio.wait([closed], timeout=DRIP)
    await closed


async def slow_head(reader: Reader, writer: Writer, draw: random.Random) -> None:
    await _drip(reader, writer, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-long: ")


async def slow_body(reader: Reader, writer: Writer, draw: random.Random) -> None:
    await _drip(reader, writer, b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n{")


async def stuck_body(reader: Reader, writer: Writer, draw: random.Random) -> None:
    writer.write(_request({"model": BASE, **OPTIONS}, sent=draw.randrange(40)))
    await reader.read(MOST_READ)


async def stuck_upload(reader: Reader, writer: Writer, draw: random.Random) -> None:
    """Begin the second file of an adapter, and never go on."""
    part = b'--b\r\ncontent-disposition: form-data; name="files"; filename="%s"\r\n\r\n'
    body = part % b"adapter_config.json" + b"{}\r\n" + part % b"adapter_model.safetensors" + bytes(draw.randrange(9000))
    head = b"POST /v1/adapters HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
    writer.write(head + b"content-length: 1000000\r\n\r\n" + body)
    await reader.read(MOST_READ)


async def half_closed(reader: Reader, writer: Writer, draw: random.Random) -> None:
    writer.write(_request(_stream(draw)))
    writer.write_eof()
    while await reader.read(1 << 16):
        pass


async def reads_nothing(reader: Reader, writer: Writer, draw: random.Random) -> None:
    """Ask for one stream after the other on one connection, and take nothing of any."""
    for _ in range(draw.randrange(2, 30)):
        writer.write(_request(_stream(draw)))
    await asyncio.sleep(draw.random())
    writer.transport.abort()


async def long_head(reader: Reader, writer: Writer, draw: random.Random) -> None:
    writer.write(b"GET /" + b"x" * draw.choice((10, 100_000)) + b" HTTP/1.1\r\nx: " + b"y" * 200_000)
    await reader.read(MOST_READ)


async def leaves(reader: Reader, writer: Writer, draw: random.Random) -> None:
    """Go in the middle: of the request, or of the answer."""
    request = _request(_stream(draw))
    if draw.random() < 0.5:
        writer.write(request[: draw.randrange(len(request))])
        await writer.drain()
    else:
        writer.write(request)
        await reader.read(draw.randrange(1, 5000))
    writer.transport.abort()


async def noise(reader: Reader, writer: Writer, draw: random.Random) -> None:
    writer.write(
        draw.choice((b"", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00")) + draw.randbytes(2000) + b"\r\n\r\n"
    )
    await reader.read(MOST_READ)


ATTACKS: tuple[Attack, ...] = (
    *(slow_head, slow_body, stuck_body, stuck_upload, half_closed, reads_nothing, long_head, leaves, noise),
)


async def clients(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Let crowds of all kinds come, and one more that only holds connections. The victim's requests all succeed."""
    begun = len(subject.logged())
    for _ in range(rounds):
        over = asyncio.Event()
        victim = asyncio.create_task(_be_victim(subject, over))
        crowd = [_attack(subject, attack, draw.getrandbits(32)) for attack in ATTACKS for _ in range(CROWD)]
        draw.shuffle(crowd)
        await asyncio.gather(*crowd)
        await _flood(subject)
        over.set()
        assert await victim > 0, "nobody has asked meanwhile"
        await until(lambda: _is_idle(subject), "end what nobody waits for")
    assert "Traceback" not in subject.logged(begun), subject.logged(begun)[-3000:]
    await subject.check()


async def _attack(subject: Subject, attack: Attack, seed: int) -> None:
    """Run one attack to its end, whoever makes it. Raises TimeoutError where the server lets it last for ever."""
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(OSError):  # the server may close before the client has said what it wants to
            reader, writer = await _connect(subject)
            try:
                await attack(reader, writer, random.Random(seed))
            finally:
                writer.transport.abort()


async def _flood(subject: Subject) -> None:
    """Hold more connections than the server takes, without a word."""
    held: list[Writer] = []
    try:
        for _ in range(FLOOD):
            with contextlib.suppress(OSError):
                held.append((await _connect(subject))[1])
        async with subject.client() as client:
            assert tokens(await ask(client, BASE)) == subject.answers[BASE]
    finally:
        for writer in held:
            writer.transport.abort()


async def _connect(subject: Subject) -> tuple[Reader, Writer]:
    url = httpx.URL(subject.server.url)
    return await asyncio.open_connection(url.host, url.port)


async def _be_victim(subject: Subject, over: asyncio.Event) -> int:
    """Ask again and again, by one request a connection. Returns how often."""
    count = 0
    async with subject.client() as client:
        while not over.is_set():
            name = (BASE, *STAYING)[count % (1 + len(STAYING))]
            assert tokens(await ask(client, name)) == subject.answers[name]
            count += 1
    return count


async def _is_idle(subject: Subject) -> bool:
    running = await asyncio.to_thread(subject.server.metric, "peftserve_sequences_running")
    return running == 0 and not subject.staged()
