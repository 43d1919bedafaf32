"""How long the first token takes of an adapter on the device, on the host, on disk, and just uploaded.

One request at a time. The kinds take turns, so that the machine's own ups and downs meet all of them.
"""

from typing import Any

from tqdm import tqdm

from ..load.report import percentiles
from .subject import Subject

TIERS = ("device", "host", "disk")
OTHERS = ("restarted", "upload", "after_upload")
WARMING = 3  # requests in which a server does what it does only once


async def measure(subject: Subject, names: list[str], rounds: int, *, restarted: bool) -> dict[str, Any]:
    """JSON: milliseconds by tier; empty for a tier that none of the adapters was found in.

    upload: from the first byte to the answer. after_upload: from there to the first token. extra: medians over that of
    the device. restarted: the server has just been, and the first requests for the adapters since are of this kind.
    """
    asked = dict.fromkeys(names)  # longest ago first
    seconds: dict[str, list[float]] = {kind: [] for kind in (*TIERS, *OTHERS)}
    first = [(await subject.ask(name)).ttft for name in tqdm(names, unit="req", desc="first", disable=None)]
    seconds["restarted"] = first[WARMING:] if restarted else []
    for _ in tqdm(range(rounds), unit="round", desc="first token", disable=None):
        for tier in TIERS:
            if name := await _one_in(subject, tier, asked):
                seconds[tier].append((await subject.ask(name)).ttft)
                asked[name] = asked.pop(name)
        new = await subject.upload()
        seconds["upload"].append(new.seconds)
        seconds["after_upload"].append((await subject.ask(new.name)).ttft)
        await subject.remove(new.name)
    made: dict[str, Any] = {kind: percentiles(found) for kind, found in seconds.items()}
    device = made["device"].get("p50")
    others = ("host", "disk", "restarted", "after_upload")
    made["extra_ms"] = {} if device is None else {k: made[k]["p50"] - device for k in others if made[k]}
    made["adapters_loaded"] = {kind: len(found) for kind, found in seconds.items()}
    return made


async def _one_in(subject: Subject, tier: str, asked: dict[str, None]) -> str | None:
    """The one asked longest ago of those in a tier."""
    states = await subject.states()
    return next((name for name in asked if states.get(name) == tier), None)
