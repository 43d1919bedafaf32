"""A run's report: a summary as JSON, in milliseconds, as a table and as a picture."""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .options import Load
from .stream import Measurement

PERCENTILES = (50, 90, 99)
LATE = 0.1  # seconds after its arrival from which on a request counts as sent late
_TIMES = ("ttft_ms", "itl_ms", "e2e_ms")
_SHOWN = ("mean", "p50", "p90", "p99")
_MOST_MODELS = 32  # shown in the table and in the picture


def make_report(load: Load, measured: Sequence[Measurement], seconds: float) -> dict[str, Any]:
    """Return a run's report as JSON; in an open loop `generator` says how late requests were sent."""
    kept_up = {} if load.trace[0].arrival is None else {"generator": lateness(measured)}
    asked = {"requests": len(load.trace)}
    asked |= {
        name: sum(getattr(request, name) for request in load.trace) for name in ("prompt_tokens", "output_tokens")
    }
    return {"workload": load.settings, "asked": asked, **summarize(measured, seconds, load.slo_ttft), **kept_up}


def summarize(measured: Sequence[Measurement], seconds: float, slo_ttft: float | None = None) -> dict[str, Any]:
    """Return counts, throughput and percentiles of `all` requests and by name of `models`, and the first few errors."""
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
    """Return the share of all requests whose first token came within `slo_ttft` seconds. A failed request did not."""
    return sum(m.is_good and m.ttft <= slo_ttft for m in measured) / len(measured)


def lateness(measured: Sequence[Measurement]) -> dict[str, Any]:
    """Return how well the generator itself kept up with the trace."""
    late = [m.late for m in measured]
    count = sum(seconds > LATE for seconds in late)
    return {"late_requests": count, "max_ms": 1000 * max(late, default=0.0), "late_ms": percentiles(late)}


def percentiles(durations: Iterable[float]) -> dict[str, float]:
    """Return mean and nearest-rank percentiles in milliseconds of durations in seconds; empty without durations."""
    ordered = sorted(1000 * duration for duration in durations)
    if not ordered:
        return {}
    ranks = {f"p{p}": ordered[max(0, -(-p * len(ordered) // 100) - 1)] for p in PERCENTILES}
    return {"mean": sum(ordered) / len(ordered), **ranks}


def readable(report: Mapping[str, Any]) -> str:
    """Return the report as text: a row for all and one for each model, of many models those with most requests."""
    models = sorted(report["models"].items(), key=lambda item: -item[1]["requests"])
    shown = sorted(models[:_MOST_MODELS]) if len(models) > _MOST_MODELS else report["models"].items()
    whole = report["all"]
    lines = [f"{whole['requests']} requests in {report['seconds']:.2f} s: {whole['requests_per_second']:.2f} req/s"]
    lines.append(_heading("slo_attainment" in whole))
    lines += [_row(name, row) for name, row in [("all", whole), *shown]]
    if len(models) > _MOST_MODELS:
        lines.append(f"and {len(models) - _MOST_MODELS} models with fewer requests")
    return "\n".join([*lines, *_remarks(report)])


def _heading(attained: bool) -> str:
    times = "".join(f"{name + ' ' + '/'.join(_SHOWN):>36}" for name in _TIMES)
    return f"{'model':<24}{'ok':>6}{'failed':>8}{'tok/s':>10}{'SLO' if attained else '':>7}{times}"


def _row(name: str, row: Mapping[str, Any]) -> str:
    times = ("/".join(f"{row[key][p]:.1f}" for p in _SHOWN) if row[key] else "-" for key in _TIMES)
    slo = f"{row['slo_attainment']:.0%}" if "slo_attainment" in row else ""
    start = f"{name:<24}{row['requests'] - row['failed']:>6}{row['failed']:>8}{row['tokens_per_second']:>10.1f}{slo:>7}"
    return start + "".join(f"{text:>36}" for text in times)


def _remarks(report: Mapping[str, Any]) -> list[str]:
    """Return warnings: errors, other numbers of tokens than asked for, a generator that was too slow."""
    found = [f"error: {message}" for message in report["errors"]]
    whole, asked = report["all"], report["asked"]
    if not whole["failed"] and whole["output_tokens"] != asked["output_tokens"]:
        found.append(f"{whole['output_tokens']} tokens came, {asked['output_tokens']} were asked for")
    if not whole["failed"] and whole["prompt_tokens"] not in (0, asked["prompt_tokens"]):
        found.append(f"the server read {whole['prompt_tokens']} tokens of prompts, not {asked['prompt_tokens']}")
    late = report.get("generator", {})
    if late.get("late_requests"):
        found.append(
            f"the generator could not keep up: {late['late_requests']} of {whole['requests']} requests were sent more "
            f"than {1000 * LATE:.0f} ms after their arrival, the latest {late['max_ms']:.0f} ms"
        )
    return found


def command_line(program: Sequence[str]) -> str:
    """Return the command as it was typed, without the API key."""
    words = list(program)
    for word in sys.argv[1:]:
        hidden = words[-1:] == ["--api-key"]
        words.append("..." if hidden else "--api-key=..." if word.startswith("--api-key=") else word)
    return shlex.join(words)


def can_plot() -> bool:
    """Return whether matplotlib is installed, which is an extra."""
    return find_spec("matplotlib") is not None


def plot(measured: Sequence[Measurement], slo_ttft: float | None, file: Path) -> None:
    """Draw the distributions of times to first token and between tokens, and each model's attainment."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    good = [m for m in measured if m.is_good]
    _distribution(panels[0], [m.ttft for m in good], len(measured), "time to first token")
    _distribution(panels[1], gaps := [gap for m in good for gap in m.gaps], len(gaps), "time between tokens")
    if slo_ttft is not None:
        panels[0].axvline(slo_ttft, color="k", linestyle="--", linewidth=1)
    _models(panels[2], measured, slo_ttft)
    figure.savefig(file)
    pyplot.close(figure)


def _distribution(panel: Any, seconds: Sequence[float], count: int, title: str) -> None:
    """Draw a cumulative distribution.

    count: of all, with those that failed, so that the curve of times to first token is the attainment of every SLO.
    """
    parts = [(index + 1) / count for index in range(len(seconds))]
    panel.step(sorted(seconds), parts, where="post")
    if seconds and min(seconds) > 0:
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("{x:g}")
        panel.tick_params(axis="x", which="minor", labelsize="xx-small", labelrotation=90)
    panel.set(title=title, xlabel="seconds", ylabel="part of all", ylim=(0, 1.02))
    panel.grid(alpha=0.3)


def _models(panel: Any, measured: Sequence[Measurement], slo_ttft: float | None) -> None:
    """Draw bars of the models with most requests: attainment with an SLO, and else the mean time to first token."""
    by_model = dict[str, list[Measurement]]()
    for measurement in measured:
        by_model.setdefault(measurement.model, []).append(measurement)
    names = sorted(by_model, key=lambda name: (-len(by_model[name]), name))[:_MOST_MODELS]
    if slo_ttft is None:
        values = [_mean([m.ttft for m in by_model[name] if m.is_good]) for name in names]
        panel.set(title="mean time to first token by model", ylabel="seconds")
    else:
        values = [attainment(by_model[name], slo_ttft) for name in names]
        panel.set(title=f"first token within {slo_ttft:g} s, by model", ylim=(0, 1.02))
    panel.bar(range(len(names)), values)
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize="xx-small")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
