import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from peftserve.server.cli.load import stream
from peftserve.server.cli.load.stream import Endpoint, Measurement, ask

CHUNKED = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
OPEN_END = "HTTP/1.1 200 OK\r\n\r\n"


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def whole(status: int, text: str) -> str:
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n\r\n{text}"


def chunk(text: str) -> str:
    return f"{len(text):x}\r\n{text}\r\n"


async def answered(parts: Sequence[str], *, silent: bool = False) -> tuple[Measurement, bytes]:
    """By a server that writes the parts and closes; the measurement, and what it was asked."""
    asked, gone = b"", asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2)
        with contextlib.suppress(OSError):
            for part in parts:
                writer.write(part.encode())
                await writer.drain()
            if silent:
                await reader.read()
            writer.close()
            await writer.wait_closed()
        gone.set()

    measurement = Measurement("m", 0.0)
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        url = httpx.URL(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix")
        await ask(Endpoint(url, {"authorization": "Bearer k"}), b"{}", measurement)
        await gone.wait()
    return measurement, asked


TEXTS = [event(choices=[{"text": "a"}]), event(choices=[{"text": "", "token_ids": [5]}])]
LAST = event(choices=[{"text": "", "finish_reason": "length"}], usage={"completion_tokens": 2, "prompt_tokens": 3})
STREAM = "".join([": a comment\n\n", *TEXTS, LAST, "data: [DONE]\n\n"])


@pytest.mark.parametrize(
    "parts",
    [
        [CHUNKED, *(chunk(text) for text in [*TEXTS, LAST]), "0\r\n\r\n"],
        [CHUNKED, *(chunk(STREAM[start : start + 7]) for start in range(0, len(STREAM), 7)), "0\r\n\r\n"],
        [whole(200, STREAM)],
        [OPEN_END, STREAM],
    ],
    ids=["chunks", "torn chunks", "at once", "to the end of the connection"],
)
async def test_chunks_with_a_token_are_timed_and_the_servers_counts_taken(parts: list[str]) -> None:
    measurement, asked = await answered(parts)
    assert len(measurement.chunks) == 2
    assert measurement.chunks == sorted(measurement.chunks)
    assert measurement.end >= measurement.chunks[-1]
    assert (measurement.completion_tokens, measurement.prompt_tokens, measurement.error) == (2, 3, None)
    assert asked.startswith(b"POST /prefix/v1/completions HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"authorization: Bearer k\r\ncontent-length: 2\r\n\r\n{}" in asked


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([whole(503, "busy\nnow")], "busy\nnow"),
        ([whole(500, "")], "an error without a word"),
        ([whole(200, event(error={"message": "broke"}))], "broke"),
        ([whole(200, event(error="broke"))], "broke"),
        ([whole(200, event(choices=[]))], "no token"),
        ([whole(200, "data: {\n")], "could not be read: JSONDecodeError"),
        (["SMTP ready\r\n"], "could not be read"),
        ([CHUNKED, chunk(TEXTS[0])], "the connection broke: closed by the server"),
        ([], "the connection broke"),
    ],
)
async def test_what_went_wrong_is_the_error(parts: list[str], message: str) -> None:
    measurement, _ = await answered(parts)
    assert message in str(measurement.error)
    assert not measurement.is_good
    assert measurement.end > 0


async def test_a_silent_server_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "SILENCE", 0.02)
    measurement, _ = await answered([CHUNKED], silent=True)
    assert "the server was silent for" in str(measurement.error)


async def test_no_connection_is_an_error() -> None:
    measurement = Measurement("m", 0.0)
    await ask(Endpoint(httpx.URL("http://127.0.0.1:9"), {}), b"{}", measurement)
    assert "no connection" in str(measurement.error)


def test_a_secure_address_has_its_port() -> None:
    place = Endpoint(httpx.URL("https://host.example"), {}).place
    assert (place["host"], place["port"], place["ssl"] is not None) == ("host.example", 443, True)
