"""The figures as a table and as JSON. Microseconds are of one layer: all of its linears."""

import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .contender import Contender
from .point import Outcome, Point

CELL = 18


def heading(names: Sequence[str]) -> str:
    """ours is named in any case; the others are those beside it."""
    fixed = f"{'phase':8}{'tokens':>6}{'adapters':>9}{'ranks':>6}{'floor us':>10}{'ours us':>10}{'x floor':>8}"
    return fixed + "".join(f"{name:>{CELL}}" for name in names if name != "ours") + "  best peer"


def line(point: Point) -> str:
    ours = point.ours
    fixed = f"{point.phase:8}{point.tokens:6}{point.adapters:9}{point.ranks:>6}{point.floor:10.1f}"
    shown = f"{ours:10.1f}{ours / point.floor:8.1f}" if ours else f"{_why(point.outcomes.get('ours')):>18}"
    peers = "".join(f"{_cell(o, ours):>{CELL}}" for name, o in point.outcomes.items() if name != "ours")
    best = point.best_peer
    return f"{fixed}{shown}{peers}  {best[0] if best else ''}" + (f" {best[1] / ours:.2f}x" if best and ours else "")


def _cell(outcome: Outcome, ours: float | None) -> str:
    if outcome.us is None:
        return _why(outcome)
    return f"{outcome.us:.1f}" + (f" ({outcome.us / ours:5.2f}x)" if ours else "")


def _why(outcome: Outcome | None) -> str:
    return outcome.note.partition(":")[0] if outcome else "-"


def summary(points: Iterable[Point]) -> dict[str, dict[str, float]]:
    """By phase, geometric means: how many times our time the best peer takes, and how many times the floor we do."""
    means: dict[str, dict[str, list[float]]] = {}
    for point in points:
        if point.ours:
            phase = means.setdefault(point.phase, {"best peer / ours": [], "ours / floor": []})
            phase["ours / floor"].append(point.ours / point.floor)
            if best := point.best_peer:
                phase["best peer / ours"].append(best[1] / point.ours)
    return {p: {name: geometric_mean(v) for name, v in by_name.items() if v} for p, by_name in means.items()}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def closing(points: Sequence[Point]) -> str:
    """What belongs under the table: the means, and each refusal or failure once."""
    lines = [
        f"{phase}: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()) + " (geometric means)"
        for phase, means in summary(points).items()
    ]
    notes = dict.fromkeys(
        f"{name}: {o.note}" for point in points for name, o in point.outcomes.items() if o.us is None and ":" in o.note
    )
    return "\n".join([*lines, *notes])


def machine_of(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": _triton_version()}
    return {"device": name, "threads": str(torch.get_num_threads()), **versions}


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [text.partition(":")[2].strip() for text in lines if text.startswith("model name")]
    return named[0] if named else platform.machine()


def _triton_version() -> str:
    try:
        import triton
    except ImportError:
        return ""
    return str(triton.__version__)


def write_json(path: Path, about: Mapping[str, Any], contenders: Sequence[Contender], points: Sequence[Point]) -> None:
    versions = {contender.name: contender.version for contender in contenders}
    report = {**about, "contenders": versions, "summary": summary(points), "points": [asdict(p) for p in points]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
