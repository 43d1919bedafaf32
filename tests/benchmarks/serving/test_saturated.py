"""The figures of a saturated server, from what its requests and probes met."""

import asyncio
from collections.abc import Callable
from types import ModuleType

Script = Callable[[str], ModuleType]


def test_requests_are_told_apart_by_how_they_ended(script: Script) -> None:
    saturated, arrivals = script("serving.saturated"), script("serving.arrivals")
    ended = [arrivals.Ended(200, "", 1.5), arrivals.Ended(429, "queue_full", 0.01)]
    ended += [arrivals.Ended(429, "queue_timeout", 2.0), arrivals.Ended(503, "unavailable", 0.03)]
    found = saturated.of_requests(ended)
    assert found["statuses"] == {"200": 1, "429 queue_full": 1, "429 queue_timeout": 1, "503 unavailable": 1}
    assert (found["refused"]["count"], found["refused"]["p99"]) == (2, 30.0)
    assert (found["waited too long"]["p50"], found["first token"]["p50"]) == (2000.0, 1500.0)


def test_quantiles(script: Script) -> None:
    quantile = script("serving.saturated").quantile
    assert quantile([], 0.99) == 0.0
    assert [quantile(range(1, 101), share) for share in (0.5, 0.99, 1.0)] == [51, 100, 100]


def test_a_request_is_timed_to_its_first_token_or_the_end_of_its_refusal(script: Script) -> None:
    arrivals = script("serving.arrivals")
    refusal = b'{"error": {"code": "queue_full"}}'
    heads = {200: b"HTTP/1.1 200 OK\r\n\r\ndata: {}\n\n", 429: b"HTTP/1.1 429 No\r\n\r\n" + refusal, 0: b""}

    async def ended(status: int) -> tuple[int, str]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(heads[status])
            writer.close()
            await writer.wait_closed()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            [one] = await arrivals.arrive(server.sockets[0].getsockname()[1], 1e-6, 1.0)
        return one.status, one.code

    for status, code in ((200, ""), (429, "queue_full"), (0, "")):
        assert asyncio.run(ended(status)) == (status, code)
