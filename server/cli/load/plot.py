"""A run as a picture: the distributions of times to first token and between tokens, and each model's attainment."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .measure import Measurement, attainment

_MOST_MODELS = 32


def can_plot() -> bool:
    return find_spec("matplotlib") is not None


def plot(measured: Sequence[Measurement], slo_ttft: float | None, file: Path) -> None:
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
    """count: of all, with those that failed: the curve of times to first token is the attainment of every SLO."""
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
    """Bars of the models with the most requests: attainment with an SLO, and else the mean time to first token."""
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
