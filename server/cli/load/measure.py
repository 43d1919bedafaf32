"""What was measured of each request, and its summary. Knows no HTTP."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (50, 90, 99)
LATE = 0.1  # seconds after its arrival from which on a request was sent late


@dataclass
class Measurement:
    """One request. Times are seconds of one clock: start, each chunk of text, and the end of the stream.

    start: when the request was due, which in an open loop is its arrival, however late it was sent. late: by how much.
    Token counts are the server's; 0 where it does not say, and then chunks are counted.
    """

    model: str
    start: float
    chunks: list[float] = field(default_factory=list)
    end: float = 0.0
    completion_tokens: int = 0
    prompt_tokens: int = 0
    late: float = 0.0
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        return self.completion_tokens or len(self.chunks)

    @property
    def is_good(self) -> bool:
        return self.error is None and bool(self.chunks)

    @property
    def ttft(self) -> float:
        return self.chunks[0] - self.start

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.chunks)]


def summarize(measured: Sequence[Measurement], seconds: float, slo_ttft: float | None = None) -> dict[str, Any]:
    """JSON: `all` and, by name, `models`, each with counts, throughput and percentiles in milliseconds."""
    models = dict[str, list[Measurement]]()
    for measurement in measured:
        models.setdefault(measurement.model, []).append(measurement)
    return {
        "seconds": seconds,
        "all": _summary(measured, seconds, slo_ttft),
        "models": {name: _summary(models[name], seconds, slo_ttft) for name in sorted(models)},
        "errors": sorted({m.error for m in measured if m.error})[:5],
    }


def _summary(measured: Sequence[Measurement], seconds: float, slo_ttft: float | None) -> dict[str, Any]:
    good = [m for m in measured if m.is_good]
    tokens = sum(m.num_tokens for m in good)
    attained = {} if slo_ttft is None else {"slo_attainment": attainment(measured, slo_ttft)}
    return {
        "requests": len(measured),
        "failed": len(measured) - len(good),
        "prompt_tokens": sum(m.prompt_tokens for m in good),
        "output_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": len(good) / seconds,
        **attained,
        "ttft_ms": percentiles(m.ttft for m in good),
        "itl_ms": percentiles(gap for m in good for gap in m.gaps),
        "e2e_ms": percentiles(m.end - m.start for m in good),
    }


def attainment(measured: Sequence[Measurement], slo_ttft: float) -> float:
    """The part of all requests whose first token came in time. One that failed did not attain it."""
    return sum(m.is_good and m.ttft <= slo_ttft for m in measured) / len(measured)


def lateness(measured: Sequence[Measurement]) -> dict[str, Any]:
    """How well the generator itself kept up with the trace."""
    late = [m.late for m in measured]
    count = sum(seconds > LATE for seconds in late)
    return {"late_requests": count, "max_ms": 1000 * max(late, default=0.0), "late_ms": percentiles(late)}


def percentiles(durations: Iterable[float]) -> dict[str, float]:
    """Mean and percentiles, of seconds in milliseconds, by nearest rank; empty without durations."""
    ordered = sorted(1000 * duration for duration in durations)
    if not ordered:
        return {}
    ranks = {f"p{p}": ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), **ranks}
