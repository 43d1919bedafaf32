"""What the streams of other requests feel while adapters are loaded and uploaded: the times between their tokens.

Windows take turns: nothing else, requests for an adapter that is there, for adapters that must be loaded, and uploads.
Of all but the first, the gaps count in which such a request or upload was under way.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from typing import Any

from tqdm import tqdm

from ..load.report import percentiles
from ..load.stream import Measurement
from .subject import Subject

KINDS = ("quiet", "warm", "load", "upload")
PAUSE = 0.2  # seconds between two of a window's requests or uploads
STREAM_TOKENS = 256


@dataclass
class Window:
    """Times are of one clock. busy: when something was under way, in order."""

    kind: str
    start: float
    end: float = 0.0
    busy: list[tuple[float, float]] = field(default_factory=list)

    def counts(self, start: float, end: float) -> bool:
        """Whether a gap is one of this window's kind."""
        if not self.start <= start < end <= self.end:
            return False
        return self.kind == "quiet" or any(begun < end and start < ended for begun, ended in self.busy)


async def measure(subject: Subject, names: Sequence[str], streams: int, rounds: int, seconds: float) -> dict[str, Any]:
    """JSON: by kind, milliseconds between tokens, and those of each kind over those of the quiet and warm windows.

    What a load adds to a request that needs it is what `load` has over `warm`.

    names: copies. The first `streams` of them have a stream each; the next is the warm one; the rest are loaded.
    """
    measured: list[Measurement] = []
    windows: list[Window] = []
    streamed = [asyncio.create_task(_stream(subject, name, measured)) for name in names[:streams]]
    work = asyncio.create_task(_windows(subject, names[streams:], rounds, seconds, windows))
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
    """measured: the streams' requests."""
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


async def _stream(subject: Subject, name: str, measured: list[Measurement]) -> None:
    while True:
        await subject.ask(name, STREAM_TOKENS, measured)


async def _windows(subject: Subject, others: Sequence[str], rounds: int, seconds: float, windows: list[Window]) -> None:
    await asyncio.sleep(1.0)
    for number in tqdm(range(rounds * len(KINDS)), unit="window", desc="stall", disable=None):
        turn, place = divmod(number, len(KINDS))
        windows.append(await _window(subject, KINDS[(turn + place) % len(KINDS)], others, seconds))


async def _window(subject: Subject, kind: str, others: Sequence[str], seconds: float) -> Window:
    warm, cold = others[0], await _not_on_device(subject, others[1:]) if kind == "load" else iter(())
    if kind == "warm":
        await subject.ask(warm)
    window = Window(kind, time.perf_counter())
    while (now := time.perf_counter()) < window.start + seconds:
        if kind == "quiet":
            await asyncio.sleep(window.start + seconds - now)
            continue
        if kind == "upload":
            name = (await subject.upload()).name
        else:
            name = warm if kind == "warm" else next(cold)
            await subject.ask(name)
        window.busy.append((now, time.perf_counter()))
        if kind == "upload":
            await subject.remove(name)
        await asyncio.sleep(PAUSE)
    window.end = time.perf_counter()
    return window


async def _not_on_device(subject: Subject, names: Sequence[str]) -> Iterator[str]:
    """Endlessly those that must be loaded: from disk if any is there, and else from the host."""
    states = await subject.states()
    tiers = [[name for name in names if states[name] == tier] for tier in ("disk", "host")]
    return cycle(tiers[0] or tiers[1] or names)
