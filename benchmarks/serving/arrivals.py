"""Requests that come at a rate of their own, whatever becomes of those before; and clients that ask again and again.

Each has a connection of its own and is timed to its first token, or to the end of a refusal. Everything is done with as
little work as can be, on the same machine as the server.
"""

import asyncio
import json
import random
import time
from typing import NamedTuple

PROMPT = "Show the title of films whose length is over 120. "


class Ended(NamedTuple):
    """What became of a request. status: of its answer; 0 where the connection was lost. code: of an error.

    wait: seconds to the first token, or to the end of what is none.
    """

    status: int
    code: str
    wait: float


async def arrive(port: int, rate: float, seconds: float, seed: int = 0) -> list[Ended]:
    """Send requests at random moments, `rate` of them a second on the mean, and return how each has ended."""
    draw, loop = random.Random(seed), asyncio.get_running_loop()
    tasks: list[asyncio.Task[Ended]] = []
    begun = due = loop.time()
    while due < begun + seconds:
        await asyncio.sleep(max(due - loop.time(), 0.0))
        tasks.append(asyncio.create_task(ask(port, draw)))
        due += draw.expovariate(rate)
    return await asyncio.gather(*tasks)


async def repeat(port: int, clients: int, seconds: float) -> float:
    """Return how many requests a second are answered where each client asks again at once."""
    draw, end = random.Random(1), time.monotonic() + seconds

    async def client() -> int:
        answered = 0
        while time.monotonic() < end:
            answered += (await ask(port, draw)).status == 200
        return answered

    begun = time.monotonic()
    answered = sum(await asyncio.gather(*(client() for _ in range(clients))))
    return answered / (time.monotonic() - begun)


def request(draw: random.Random) -> bytes:
    """Return a streamed completion with a prompt of its own, for whichever adapter of two or the base."""
    model = draw.choice(("demo", "sql", "snake"))
    body = {"model": model, "prompt": PROMPT * 4 + str(draw.random()), "max_tokens": 32, "stream": True}
    content = json.dumps({**body, "ignore_eos": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


async def ask(port: int, draw: random.Random) -> Ended:
    """Send one request and read its answer to the end."""
    begun, writer = time.perf_counter(), None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(draw))
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status == 200:
            await reader.readuntil(b"data: ")
        first = time.perf_counter() - begun
        rest = await reader.read()
        wait = first if status == 200 else time.perf_counter() - begun
    except (OSError, asyncio.IncompleteReadError):
        return Ended(0, "", time.perf_counter() - begun)
    finally:
        if writer is not None:
            writer.close()
    return Ended(status, "" if status == 200 else json.loads(rest)["error"]["code"] or "", wait)
