"""The comparison of servers' runs: the figures, their ratios in each round, and the table of both."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from ..tables import aligned

FIGURES = {
    "tok/s": ("all", "tokens_per_second"),
    "req/s": ("all", "requests_per_second"),
    "TTFT p50, ms": ("all", "ttft_ms", "p50"),
    "TTFT p99, ms": ("all", "ttft_ms", "p99"),
    "ITL p50, ms": ("all", "itl_ms", "p50"),
    "ITL p99, ms": ("all", "itl_ms", "p99"),
    "end to end p50, ms": ("all", "e2e_ms", "p50"),
    "end to end p99, ms": ("all", "e2e_ms", "p99"),
    "SLO attainment": ("all", "slo_attainment"),
    "prefill, prompt tok/s": ("phases", "prefill", "prompt_tokens_per_second"),
    "decode, tok/s": ("phases", "decode", "all", "tokens_per_second"),
    "decode, ITL p50, ms": ("phases", "decode", "all", "itl_ms", "p50"),
}


def figure(run: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """Return a figure of a run, None where the run has none."""
    found: Any = run
    for key in path:
        found = found.get(key) if found else None
    return None if found is None else float(found)


def ratios(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the first server's figures over each other's, by server and figure: in each round, and their median."""
    first, *others = runs
    found: dict[str, dict[str, dict[str, Any]]] = {other: {} for other in others}
    for other in others:
        for name, path in FIGURES.items():
            pairs = [(figure(a, path), figure(b, path)) for a, b in zip(runs[first], runs[other], strict=True)]
            values = [one / two for one, two in pairs if one is not None and two]
            if values:
                found[other][name] = {"median": median(values), "rounds": values}
    return found


def table(report: Mapping[str, Any]) -> str:
    """Return the table of the servers' medians and of their ratios."""
    runs, over = report["runs"], report["ratios"]
    first, *others = runs
    headings = [*runs, *(f"{first} / {other}" for other in others)]
    rows = []
    for name, path in FIGURES.items():
        medians = [_median([figure(run, path) for run in runs[server]], ".2f") for server in runs]
        medians += [_median([over[other].get(name, {}).get("median")], ".3f") for other in others]
        if {*medians} != {"-"}:
            rows.append([name, *medians])
    return aligned(["median of rounds", *headings], rows)


def _median(values: Sequence[float | None], digits: str) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):{digits}}" if known else "-"
