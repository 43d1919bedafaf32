"""Stalls of other requests' streams while adapters are loaded and uploaded: the times between their tokens.

Windows take turns: nothing else, requests for a resident adapter, requests for adapters that must be loaded, uploads.
Of all but the first, only gaps count during which such a request or upload was under way.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import Any

from tqdm import tqdm

from peftserve.server.cli.load.report import percentiles
from peftserve.server.cli.load.stream import Measurement

from .server import MeasuredServer

KINDS = ("quiet", "warm", "load", "upload")
PAUSE = 0.2  # seconds between two of a window's requests or uploads
STREAM_TOKENS = 256


@dataclass
class Window:
    """A stretch of one kind of load. Times are seconds of one clock. busy: when an event was under way, in order."""

    kind: str
    start: float
    end: float = 0.0
    busy: list[tuple[float, float]] = field(default_factory=list)

    def counts(self, start: float, end: float) -> bool:
        """Return whether a gap between two tokens counts for this window."""
        if not self.start <= start < end <= self.end:
            return False
        return self.kind == "quiet" or any(begun < end and start < ended for begun, ended in self.busy)


async def measure(
    server: MeasuredServer, names: Sequence[str], streams: int, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measure; return milliseconds between tokens by kind as JSON, and their ratios to the quiet and warm windows.

    The cost of a load itself is what `load` has over `warm`. names: of copies. The first `streams` have a stream each,
    the next one is the warm one, the rest are loaded.
    """
    measured: list[Measurement] = []
    windows: list[Window] = []
    streamed = [asyncio.create_task(_stream(server, name, measured)) for name in names[:streams]]
    work = asyncio.create_task(_windows(server, names[streams:], rounds, seconds, windows))
    try:
        await asyncio.wait([*streamed, work], return_when=asyncio.FIRST_COMPLETED)  # a stream ends only in an error
    finally:
        for task in (*streamed, work):
            task.cancel()
        ended = await asyncio.gather(*streamed, work, return_exceptions=True)
    if failed := [error for error in ended if isinstance(error, Exception)]:
        raise failed[0]
    return summarize(windows, measured)


def summarize(windows: Sequence[Window], measured: Sequence[Measurement]) -> dict[str, Any]:
    """Return the JSON of `measure` from the windows and the streams' requests."""
    gaps = [gap for measurement in measured for gap in pairwise(measurement.chunks)]
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for window in windows:
        found[window.kind] += [end - start for start, end in gaps if window.counts(start, end)]
    made: dict[str, Any] = {kind: percentiles(seconds) for kind, seconds in found.items()}
    for base in ("quiet", "warm"):
        ours = [kind for kind in KINDS[KINDS.index(base) + 1 :] if made[base] and made[kind]]
        made[f"over_{base}"] = {
            kind: {share: made[kind][share] / made[base][share] for share in ("mean", "p50", "p99")} for kind in ours
        }
    made["gaps"] = {kind: len(seconds) for kind, seconds in found.items()}
    made["events"] = {kind: sum(len(w.busy) for w in windows if w.kind == kind) for kind in KINDS[1:]}
    return made


async def _stream(server: MeasuredServer, name: str, measured: list[Measurement]) -> None:
    while True:
        await server.ask(name, STREAM_TOKENS, measured)


async def _windows(
    server: MeasuredServer, others: Sequence[str], rounds: int, seconds: float, windows: list[Window]
) -> None:
    await asyncio.sleep(1.0)
    for number in tqdm(range(rounds * len(KINDS)), unit="window", desc="stall", disable=None):
        turn, place = divmod(number, len(KINDS))
        windows.append(await _window(server, KINDS[(turn + place) % len(KINDS)], others, seconds))


async def _window(server: MeasuredServer, kind: str, others: Sequence[str], seconds: float) -> Window:
    warm, cold = others[0], await _not_on_device(server, others[1:]) if kind == "load" else iter(())
    if kind == "warm":
        await server.ask(warm)
    window = Window(kind, time.perf_counter())
    while (now := time.perf_counter()) < window.start + seconds:
        if kind == "quiet":
            await asyncio.sleep(window.start + seconds - now)
            continue
        if kind == "upload":
            name = (await server.upload()).name
        else:
            name = warm if kind == "warm" else next(cold)
            await server.ask(name)
        window.busy.append((now, time.perf_counter()))
        if kind == "upload":
            await server.remove(name)
        await asyncio.sleep(PAUSE)
    window.end = time.perf_counter()
    return window


async def _not_on_device(server: MeasuredServer, names: Sequence[str]) -> Iterator[str]:
    """Yield adapters that must be loaded, endlessly: from disk if any are there, and else from the host."""
    states = await server.states()
    tiers = [[name for name in names if states[name] == tier] for tier in ("disk", "host")]
    return cycle(tiers[0] or tiers[1] or names)
