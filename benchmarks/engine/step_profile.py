"""Profiles of the engine's steps: on the device by kernel, and on the host by the timed calls."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple

import torch

TIMED_CALLS = {
    "step": "peftserve.server.engine.engine:Engine.step",
    "schedule": "peftserve.server.engine.scheduling.scheduler:Scheduler.schedule",
    "launch": "peftserve.server.engine.pipeline:Pipeline._launch",
    "begin": "peftserve.server.engine.model.runner:ModelRunner._begin",
    "sample": "peftserve.server.engine.completion:PendingStep._sample",
    "collect": "peftserve.server.engine.pipeline:Pipeline._collect",
    "wait": "torch.cuda:Event.synchronize",
}
"""The host's calls in a step. `begin` and mostly `sample` are in `launch`; `wait` (for the device) is in `collect`."""
TOP, WIDTH = 10, 80


class Interval(NamedTuple):
    """A kernel or copy on the device. start, end: microseconds."""

    name: str
    start: float
    end: float


def device_profile(run: Callable[[], object], count: int) -> dict[str, Any] | None:
    """Profile `count` calls; return the figures of one. None without a GPU."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            run()
        torch.cuda.synchronize()
    on_device = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return summary([Interval(e.name, e.time_range.start, e.time_range.end) for e in on_device], count)


def summary(intervals: Sequence[Interval], count: int) -> dict[str, Any]:
    """Return the figures of one call, in milliseconds.

    kernels_ms: sum of all kernels and copies. busy_ms: time in which any ran. span_ms: from the first to the last.
    busy: busy_ms over span_ms. launches: their number. top: [name, ms, times] of those that took most.
    """
    if not intervals:
        return {"launches": 0.0, "kernels_ms": 0.0, "busy_ms": 0.0, "span_ms": 0.0, "busy": None, "top": []}
    spans = sorted(intervals, key=lambda interval: interval.start)
    busy, reached = 0.0, spans[0].start
    for _, start, end in spans:
        busy += max(end - max(start, reached), 0.0)
        reached = max(reached, end)
    span = reached - spans[0].start
    names: dict[str, list[float]] = defaultdict(list)
    for name, start, end in spans:
        names[name[:WIDTH]].append(end - start)
    top = sorted(names.items(), key=lambda item: -sum(item[1]))[:TOP]
    return {
        "launches": len(spans) / count,
        "kernels_ms": _ms(sum(end - start for _, start, end in spans), count),
        "busy_ms": _ms(busy, count),
        "span_ms": _ms(span, count),
        "busy": round(busy / span, 4) if span else 1.0,
        "top": [[name, _ms(sum(times), count), round(len(times) / count, 2)] for name, times in top],
    }


def _ms(microseconds: float, count: int) -> float:
    return round(microseconds / count / 1e3, 4)


def host_profile(run: Callable[[], object], count: int) -> dict[str, float]:
    """Time `count` calls; return the ms of one by timed call. `host`: the step without its waits for the device."""
    with _timed() as seconds:
        for _ in range(count):
            run()
    found = {call: round(seconds[call] / count * 1e3, 4) for call in TIMED_CALLS if call in seconds}
    return {**found, "host": round(found.get("step", 0.0) - found.get("wait", 0.0), 4)}


@contextlib.contextmanager
def _timed() -> Iterator[dict[str, float]]:
    seconds: dict[str, float] = defaultdict(float)
    with contextlib.ExitStack() as stack:
        for call, place in TIMED_CALLS.items():
            owner, name = _owner(place)
            original = getattr(owner, name)
            setattr(owner, name, _counting(original, seconds, call))
            stack.callback(setattr, owner, name, original)
        yield seconds


def _owner(place: str) -> tuple[Any, str]:
    module, _, path = place.partition(":")
    class_name, _, method = path.partition(".")
    return getattr(import_module(module), class_name), method


def _counting(original: Callable[..., Any], seconds: dict[str, float], call: str) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds[call] += time.perf_counter() - start

    return timed


def lines(profile: dict[str, Any] | None, host: dict[str, float]) -> Iterator[str]:
    """Yield the lines that are printed, indented, under a measurement."""
    yield "     host, ms a step: " + ", ".join(f"{call} {ms:.3f}" for call, ms in host.items())
    if profile is None:
        return
    yield (
        f"     device: {profile['launches']:.0f} launches a step, {profile['kernels_ms']:.3f} ms of kernels, "
        f"busy {profile['busy_ms']:.3f} of {profile['span_ms']:.3f} ms"
    )
    for name, ms, times in profile["top"]:
        yield f"       {1e3 * ms:9.1f} us {times:7.1f} x  {name}"
