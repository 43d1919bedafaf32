"""The figures as a table and as JSON. Microseconds are of one layer: all of its linears."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..tables import Table
from .contender import Contender
from .point import Outcome, Point

COLUMNS = {"phase": "<8", "tokens": "6", "adapters": "9", "ranks": "6", "floor us": "10.1f", "ours us": "10.1f"}
COLUMNS |= {"x floor": "13.1f"}  # or why ours has no time
PEER = "18"


def figures(names: Sequence[str]) -> Table:
    """Return the table of contenders of these names: ours in any case, and a column for each other one."""
    return Table({**COLUMNS, **{name: PEER for name in names if name != "ours"}, "  best peer": "<11"})


def line(point: Point) -> str:
    """Return a step's line in the table of its contenders."""
    setting = (point.phase, point.tokens, point.adapters, point.ranks, point.floor)
    ours = point.ours
    shown = (ours, ours / point.floor) if ours else (None, _why(point.outcomes.get("ours")))
    peers = [_cell(outcome, ours) for name, outcome in point.outcomes.items() if name != "ours"]
    best = point.best_peer
    said = f"  {best[0] if best else ''}" + (f" {best[1] / ours:.2f}x" if best and ours else "")
    return figures(list(point.outcomes)).line(*setting, *shown, *peers, said)


def _cell(outcome: Outcome, ours: float | None) -> str:
    if outcome.us is None:
        return _why(outcome)
    return f"{outcome.us:.1f}" + (f" ({outcome.us / ours:5.2f}x)" if ours else "")


def _why(outcome: Outcome | None) -> str:
    return outcome.note.partition(":")[0] if outcome else "-"


def summary(points: Iterable[Point]) -> dict[str, dict[str, float]]:
    """Return geometric means by phase: of the best peer's time over ours, and of our time over the floor."""
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
    """Return the lines under the table: the means, and each refusal or failure once."""
    lines = [
        f"{phase}: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()) + " (geometric means)"
        for phase, means in summary(points).items()
    ]
    notes = dict.fromkeys(
        f"{name}: {o.note}" for point in points for name, o in point.outcomes.items() if o.us is None and ":" in o.note
    )
    return "\n".join([*lines, *notes])


def write_json(path: Path, about: Mapping[str, Any], contenders: Sequence[Contender], points: Sequence[Point]) -> None:
    versions = {contender.name: contender.version for contender in contenders}
    report = {**about, "contenders": versions, "summary": summary(points), "points": [asdict(p) for p in points]}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
