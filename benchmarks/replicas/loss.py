"""What the end of a replica costs: which requests fail that ran, or came meanwhile, and when all replicas are back."""

import asyncio
import os
import signal
import time
from collections import Counter
from typing import Any

import httpx

from .servers import TIMEOUT, Server

CLIENTS = 16
TOKENS = 64
BODY = {"prompt": [40] * 16, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


async def measure(server: Server, seconds: float) -> dict[str, Any]:
    """Kill a replica's processes under traffic, and count what becomes of the requests until all are back."""
    counts, over = Counter[str](), asyncio.Event()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT, trust_env=False, limits=limits) as http:
        clients = [asyncio.create_task(_ask_on(http, counts, over)) for _ in range(CLIENTS)]
        await asyncio.sleep(seconds)
        victim = server.actors()[0]
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while await asyncio.to_thread(server.metric, "peftserve_replicas") == server.replicas:
            await asyncio.sleep(0.01)
        noticed = time.monotonic() - killed
        while await asyncio.to_thread(server.metric, "peftserve_replicas") < server.replicas:
            await asyncio.sleep(0.2)
        back = time.monotonic() - killed
        over.set()
        await asyncio.gather(*clients)
    return {"replicas": server.replicas, "clients": CLIENTS, "noticed_s": noticed, "all_back_s": back, **counts}


async def _ask_on(http: httpx.AsyncClient, counts: Counter[str], over: asyncio.Event) -> None:
    while not over.is_set():
        answer = await http.post("/v1/completions", json=BODY)
        counts["answers"] += 1
        if answer.status_code == 200:
            counts["short"] += answer.json()["usage"]["completion_tokens"] != TOKENS
        else:
            counts[answer.json()["error"]["code"]] += 1
