"""What a run's JSON has, and what of it is printed."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .measure import LATE, Measurement, lateness, summarize
from .options import Load

_TIMES = ("ttft_ms", "itl_ms", "e2e_ms")
_SHOWN = ("mean", "p50", "p90", "p99")
_MOST_ROWS = 32


def make_report(load: Load, measured: Sequence[Measurement], seconds: float) -> dict[str, Any]:
    """generator: how late requests were sent, in an open loop."""
    kept_up = {} if load.trace[0].arrival is None else {"generator": lateness(measured)}
    asked = {"requests": len(load.trace)}
    asked |= {
        name: sum(getattr(request, name) for request in load.trace) for name in ("prompt_tokens", "output_tokens")
    }
    return {"workload": load.settings, "asked": asked, **summarize(measured, seconds, load.slo_ttft), **kept_up}


def readable(report: Mapping[str, Any]) -> str:
    """A row for all, and one for each model; of very many models those with the most requests."""
    models = sorted(report["models"].items(), key=lambda item: -item[1]["requests"])
    shown = sorted(models[:_MOST_ROWS]) if len(models) > _MOST_ROWS else report["models"].items()
    whole = report["all"]
    lines = [f"{whole['requests']} requests in {report['seconds']:.2f} s: {whole['requests_per_second']:.2f} req/s"]
    lines.append(_heading("slo_attainment" in whole))
    lines += [_row(name, row) for name, row in [("all", whole), *shown]]
    if len(models) > _MOST_ROWS:
        lines.append(f"and {len(models) - _MOST_ROWS} models with fewer requests")
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
    """What a reader of the figures must know: errors, other work than was asked for, a generator that was too slow."""
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
    """As it was typed, but for a key."""
    words = list(program)
    for word in sys.argv[1:]:
        hidden = words[-1:] == ["--api-key"]
        words.append("..." if hidden else "--api-key=..." if word.startswith("--api-key=") else word)
    return shlex.join(words)
