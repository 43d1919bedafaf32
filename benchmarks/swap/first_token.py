"""Time to first token with an adapter on the device, on the host, on disk, and just uploaded.

One request at a time. The kinds take turns, so that what disturbs the machine disturbs all of them.
"""

from typing import Any

from tqdm import tqdm

from peftserve.server.cli.load.report import percentiles

from .server import MeasuredServer

TIERS = ("device", "host", "disk")
OTHERS = ("restarted", "upload", "after_upload")
WARMING = 3  # first requests, which a server may spend on one-time work


async def measure(server: MeasuredServer, names: list[str], rounds: int, *, restarted: bool) -> dict[str, Any]:
    """Measure; return milliseconds by tier as JSON, empty for a tier in which none of the adapters was found.

    upload: from the first byte to the answer. after_upload: from there to the first token. extra_ms: medians less that
    of the device. restarted: the server has just been restarted; the first request for each adapter counts as such.
    """
    asked = dict.fromkeys(names)  # least recently used first
    seconds: dict[str, list[float]] = {kind: [] for kind in (*TIERS, *OTHERS)}
    first = [(await server.ask(name)).ttft for name in tqdm(names, unit="req", desc="first", disable=None)]
    seconds["restarted"] = first[WARMING:] if restarted else []
    for _ in tqdm(range(rounds), unit="round", desc="first token", disable=None):
        for tier in TIERS:
            if name := await _one_in(server, tier, asked):
                seconds[tier].append((await server.ask(name)).ttft)
                asked[name] = asked.pop(name)
        new = await server.upload()
        seconds["upload"].append(new.seconds)
        seconds["after_upload"].append((await server.ask(new.name)).ttft)
        await server.remove(new.name)
    made: dict[str, Any] = {kind: percentiles(found) for kind, found in seconds.items()}
    device = made["device"].get("p50")
    others = ("host", "disk", "restarted", "after_upload")
    made["extra_ms"] = {} if device is None else {k: made[k]["p50"] - device for k in others if made[k]}
    made["adapters_loaded"] = {kind: len(found) for kind, found in seconds.items()}
    return made


async def _one_in(server: MeasuredServer, tier: str, asked: dict[str, None]) -> str | None:
    """Return the least recently used adapter of a tier, None if it has none."""
    states = await server.states()
    return next((name for name in asked if states.get(name) == tier), None)
