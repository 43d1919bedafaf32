"""What was measured of each request, and its summary. Knows no HTTP."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PERCENTILES = (50, 90, 99)


@dataclass
class Measurement:
    """One request. Times are seconds of one clock: start, each chunk of text, and the end of the stream.

    completion_tokens: as the server counts them; 0 where it does not say, and then chunks are counted.
    """

    model: str
    start: float
    chunks: list[float] = field(default_factory=list)
    end: float = 0.0
    completion_tokens: int = 0
    error: str | None = None

    @property
    def num_tokens(self) -> int:
        return self.completion_tokens or len(self.chunks)


def summarize(measured: Sequence[Measurement], seconds: float) -> dict[str, Any]:
    """JSON: `all` and, by name, `models`, each with counts, throughput and percentiles in milliseconds."""
    models = sorted({request.model for request in measured})
    return {
        "seconds": seconds,
        "all": _summary(measured, seconds),
        "models": {name: _summary([m for m in measured if m.model == name], seconds) for name in models},
        "errors": sorted({m.error for m in measured if m.error})[:5],
    }


def _summary(measured: Sequence[Measurement], seconds: float) -> dict[str, Any]:
    good = [m for m in measured if m.error is None and m.chunks]
    tokens = sum(m.num_tokens for m in good)
    return {
        "requests": len(measured),
        "failed": len(measured) - len(good),
        "output_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "requests_per_second": len(good) / seconds,
        "ttft_ms": percentiles(m.chunks[0] - m.start for m in good),
        "itl_ms": percentiles(after - before for m in good for before, after in pairwise(m.chunks)),
        "e2e_ms": percentiles(m.end - m.start for m in good),
    }


def percentiles(durations: Iterable[float]) -> dict[str, float]:
    """Mean and percentiles, of seconds in milliseconds, by nearest rank; empty without durations."""
    ordered = sorted(1000 * duration for duration in durations)
    if not ordered:
        return {}
    ranks = {f"p{p}": ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), **ranks}
