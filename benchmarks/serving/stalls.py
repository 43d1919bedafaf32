"""How long others wait while one client asks for much: the longest wait of /health and of short completions.

    python -m benchmarks.serving.stalls [--checkout CHECKOUT] [--only NAME]

The real server with an engine that answers at once (`instant_engine.py`), a new one for each case, so that the peak of
memory is the case's own. All of it and the clients are on the same cores.
"""

import argparse
import asyncio
import http.client
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from ..checkouts import ROOT
from .front_end import Contestant, server

STOPS = ["a" * (1007 + i) + "b" for i in range(16)]  # 17 KB
TEXT = "The quick brown fox jumps over the lazy dog. "
SECONDS = 300.0
SHORT = {"prompt": "a b", "max_tokens": 2}
WIDE = {"prompt": ["a b c d e f g h i"] * 8, "n": 128, "max_tokens": 16}
Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]


def _text(length: int) -> str:
    return (TEXT * (length // len(TEXT) + 1))[:length]


CASES: dict[str, tuple[str, dict[str, Any]] | None] = {
    "nothing": None,
    "8 x 128 sequences": ("/v1/completions", WIDE),
    "8 x 128 sequences, 16 stop strings": ("/v1/completions", {**WIDE, "stop": STOPS}),
    "a completion of 1 MB": ("/v1/completions", {"prompt": _text(1 << 20), "max_tokens": 8}),
    "a completion of 15 MB": ("/v1/completions", {"prompt": _text(15 << 20), "max_tokens": 8}),
    "a chat of 15 MB": ("/v1/chat/completions", {"messages": [{"role": "user", "content": _text(15 << 20)}]}),
    "1,024 prompts of 1,000 characters": ("/v1/completions", {"prompt": [_text(1000)] * 1024, "max_tokens": 8}),
    "a million token ids": ("/v1/completions", {"prompt": [[1] * 1000] * 1000, "max_tokens": 8}),
    "1 MB to tokenize, with the tokens' texts": ("/tokenize", {"prompt": _text(1 << 20), "return_token_strs": True}),
    "a million tokens to detokenize": ("/detokenize", {"tokens": [300] * (1 << 20)}),
}  # fmt: skip


async def measure(port: int, case: tuple[str, dict[str, Any]] | None) -> tuple[float, list[float], int]:
    """Return the seconds that the case took, the longest waits of the two probes, and the status."""
    ended = asyncio.Event()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SECONDS) as client:
        asks: list[Ask] = [
            lambda client: client.get("/health"),
            lambda client: client.post("/v1/completions", json=SHORT),
        ]
        probes = [asyncio.create_task(_probe(client, ask, ended)) for ask in asks]
        await asyncio.sleep(0.2)
        begun, status = time.perf_counter(), 0
        if case is None:
            await asyncio.sleep(1)
        else:
            # On a thread: what is sent at once must not keep this loop's own probes waiting.
            status = await asyncio.to_thread(_post, port, case[0], json.dumps(case[1]).encode())
        took = time.perf_counter() - begun
        await asyncio.sleep(0.05)
        ended.set()
        return took, [max(waits) for waits in await asyncio.gather(*probes)], status


async def _probe(client: httpx.AsyncClient, ask: Ask, ended: asyncio.Event) -> list[float]:
    waits: list[float] = []
    while not ended.is_set():
        begun = time.perf_counter()
        await ask(client)
        waits.append(time.perf_counter() - begun)
        await asyncio.sleep(0.005)
    return waits


def _post(port: int, path: str, body: bytes) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", path, body)
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.status


def _peak(pid: int) -> int:
    """Return the most MiB that a process has held."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=ROOT)
    parser.add_argument("--only", help="cases whose name begins so", default="")
    args = parser.parse_args()
    for name, case in CASES.items():
        if not name.startswith(args.only):
            continue
        with server(Contestant(args.checkout.resolve()), 0.0) as (pids, port):
            took, (health, short), status = asyncio.run(measure(port, case))
            peak = _peak(pids[0])
        waits = f"/health waited {health * 1e3:.0f} ms, a short completion {short * 1e3:.0f} ms"
        print(f"{name}: {status or ''} after {took:.2f} s; {waits}; {peak} MiB", flush=True)


if __name__ == "__main__":
    main()
