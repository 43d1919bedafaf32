"""What servers' runs say of each other: the figures, their ratios in each round, and the table of both."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

FIGURES = {
    "tok/s": ("tokens_per_second",),
    "req/s": ("requests_per_second",),
    "TTFT p50, ms": ("ttft_ms", "p50"),
    "TTFT p99, ms": ("ttft_ms", "p99"),
    "ITL p50, ms": ("itl_ms", "p50"),
    "ITL p99, ms": ("itl_ms", "p99"),
    "end to end p50, ms": ("e2e_ms", "p50"),
    "end to end p99, ms": ("e2e_ms", "p99"),
    "SLO attainment": ("slo_attainment",),
}


def figure(run: Mapping[str, Any], path: Sequence[str]) -> float | None:
    found: Any = run["all"]
    for key in path:
        found = found.get(key) if found else None
    return None if found is None else float(found)


def ratios(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By server other than the first and by figure: the first's over its, in each round, and their median."""
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
    runs, over = report["runs"], report["ratios"]
    first, *others = runs
    headings = [*runs, *(f"{first} / {other}" for other in others)]
    width = max(14, *(len(heading) + 2 for heading in headings))
    lines = [f"{'median of rounds':<20}" + "".join(f"{heading:>{width}}" for heading in headings)]
    for name, path in FIGURES.items():
        medians = [_median([figure(run, path) for run in runs[server]], ".2f") for server in runs]
        medians += [_median([over[other].get(name, {}).get("median")], ".3f") for other in others]
        if {*medians} != {"-"}:
            lines.append(f"{name:<20}" + "".join(f"{text:>{width}}" for text in medians))
    return "\n".join(lines)


def _median(values: Sequence[float | None], digits: str) -> str:
    known = [value for value in values if value is not None]
    return f"{median(known):{digits}}" if known else "-"
