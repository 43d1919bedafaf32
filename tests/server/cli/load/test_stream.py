import json
from collections.abc import Iterable
from typing import Any

import httpx
import pytest

from peftserve.server.cli.load.measure import Measurement
from peftserve.server.cli.load.stream import ask


def event(**fields: Any) -> str:
    return f"data: {json.dumps(fields)}\n\n"


async def answered(status: int, parts: Iterable[str]) -> Measurement:
    measurement = Measurement("m", 0.0)
    transport = httpx.MockTransport(lambda _: httpx.Response(status, content="".join(parts).encode()))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        await ask(http, b"{}", measurement)
    return measurement


async def test_chunks_with_a_token_are_timed_and_the_servers_counts_taken() -> None:
    texts = [event(choices=[{"text": "a"}]), event(choices=[{"text": "", "token_ids": [5]}])]
    last = event(choices=[{"text": "", "finish_reason": "length"}], usage={"completion_tokens": 2, "prompt_tokens": 3})
    measurement = await answered(200, [": a comment\n\n", *texts, last, "data: [DONE]\n\n"])
    assert len(measurement.chunks) == 2
    assert measurement.chunks == sorted(measurement.chunks)
    assert measurement.end >= measurement.chunks[-1]
    assert (measurement.completion_tokens, measurement.prompt_tokens, measurement.error) == (2, 3, None)


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (503, "busy", "busy"),
        (200, event(error={"message": "broke"}), "broke"),
        (200, event(error="broke"), "broke"),
        (200, event(choices=[]), "no token"),
        (200, "data: {\n", "JSONDecodeError"),
    ],
)
async def test_what_went_wrong_is_the_error(status: int, body: str, message: str) -> None:
    measurement = await answered(status, [body])
    assert message in str(measurement.error)
    assert not measurement.is_good
    assert measurement.end > 0


async def test_a_connection_that_breaks_is_an_error() -> None:
    measurement = Measurement("m", 0.0)

    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://server") as http:
        await ask(http, b"{}", measurement)
    assert "refused" in str(measurement.error)
