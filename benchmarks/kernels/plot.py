"""The figures as pictures of time against tokens, one a phase: a panel for each set of ranks and number of adapters."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .point import Point

FORMATS = ("png", "svg")


def plot(points: Sequence[Point], stem: Path) -> list[Path]:
    """Write the pictures; return their files, none without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot
    except ImportError:
        return []
    written = []
    for phase in dict.fromkeys(point.phase for point in points):
        figure = _figure(pyplot, [point for point in points if point.phase == phase])
        for suffix in FORMATS:
            written.append(stem.with_name(f"{stem.name}_{phase}.{suffix}"))
            figure.savefig(written[-1])
        pyplot.close(figure)
    return written


def _figure(pyplot: Any, points: Sequence[Point]) -> Any:
    columns = list(dict.fromkeys(point.ranks for point in points))
    rows = sorted({point.adapters for point in points})
    size = (1.5 + 3.2 * len(columns), 1.0 + 2.4 * len(rows))
    figure, axes = pyplot.subplots(
        len(rows), len(columns), figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for row, adapters in enumerate(rows):
        for column, ranks in enumerate(columns):
            of_panel = [point for point in points if (point.adapters, point.ranks) == (adapters, ranks)]
            _panel(axes[row][column], of_panel, f"{adapters} adapter{'s' * (adapters > 1)}, rank {ranks}")
    tokens = sorted({point.tokens for point in points})
    axes[0][0].set_xticks(tokens, [str(count) for count in tokens])  # all panels share them
    legends = [panel.get_legend_handles_labels() for panel in axes.flat]
    handles = {text: handle for found, texts in legends for handle, text in zip(found, texts, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize="small")
    figure.supxlabel("tokens")
    figure.supylabel("microseconds of a layer")
    return figure


def _panel(axes: Any, points: Sequence[Point], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="xx-small")
    if not points:
        axes.set_axis_off()
        return
    axes.set_title(title, fontsize="small")
    tokens = [point.tokens for point in points]
    axes.plot(tokens, [point.floor for point in points], "k--", marker="_", linewidth=1, label="floor")
    for index, name in enumerate(points[0].outcomes):
        values = [point.outcomes[name].us for point in points]
        shown = [float("nan") if value is None else value for value in values]
        width = 2.2 if name == "ours" else 1.0
        axes.plot(tokens, shown, marker=".", linewidth=width, color=f"C{index}", label=name)
