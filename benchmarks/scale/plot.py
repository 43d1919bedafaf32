"""What a fleet does, as pictures: waits and bytes against load, a line for each policy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

FIGURES = {
    "ttft_p99": "first token, p99, ms",
    "ttft_p50": "first token, p50, ms",
    "from_device": "adapter was on the device",
    "gb_per_1000": "GB loaded by 1,000 requests",
}
LOGARITHMIC = ("ttft_p99", "ttft_p50", "gb_per_1000")


def plot(runs: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write a picture of the size of fleet that has the most runs; return its file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sizes = [run["settings"]["replicas"] for run in runs]
    size = max(set(sizes), key=sizes.count)
    of_size = [run for run in runs if run["settings"]["replicas"] == size]
    columns = sorted({(run["settings"]["trace"], run["settings"]["skew"]) for run in of_size}, reverse=True)
    figure, axes = pyplot.subplots(
        len(FIGURES), len(columns), figsize=(3.1 * len(columns), 9.5), sharex=True, sharey="row", squeeze=False
    )
    for column, (trace, skew) in enumerate(columns):
        here = [run for run in of_size if (run["settings"]["trace"], run["settings"]["skew"]) == (trace, skew)]
        axes[0][column].set_title(f"{trace}, skew {skew:g}", fontsize="medium")
        for row, name in enumerate(FIGURES):
            _panel(axes[row][column], here, name)
    for row, text in enumerate(FIGURES.values()):
        axes[row][0].set_ylabel(text)
    figure.supxlabel("requests a second and replica")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), fontsize="small")
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    path = folder / "scale.png"
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return [path]


def _panel(panel: Any, runs: Sequence[dict[str, Any]], name: str) -> None:
    for policy in dict.fromkeys(run["settings"]["policy"] for run in runs):
        points = sorted((r["settings"]["rate"], r["figures"][name]) for r in runs if r["settings"]["policy"] == policy)
        panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=policy)
    if name in LOGARITHMIC:
        panel.set_yscale("log")
    panel.grid(alpha=0.3)
