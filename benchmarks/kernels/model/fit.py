"""The fit of the kernel model's constants to the measurements, and how far each point is off.

    python -m benchmarks.kernels.model.fit [--all]

Least squares of the logarithms of model over measured: first the constants of single launches, then those that only
whole steps show (idle blocks). Prints the constants for `kernels/bypass/triton/model.py`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from peftserve.kernels.bypass.triton.model import FITTED, Constants

from ...tables import Table
from .explained import BY_RANKS, ByRanks, ModelledPoint, beside, half_points, half_us, steps
from .measured import device_of, halves, read
from .persistent import points as persistent

OF_LAUNCHES = ("launch", "latency", "step", "product", "element", "cached", "outputs")
OF_STEPS = ("idle",)
ROUNDS, DAMPING = 12, 1e-3

Floats = npt.NDArray[np.float64]


def fit(table: dict[str, Any]) -> tuple[Constants, ByRanks]:
    """Fit the constants of the product's kernels, and those of the experiment's first expand."""
    device, points = device_of(table), halves(table)
    own = [point for point in points if point.half != "expand_by_ranks"]
    other = [point for point in points if point.half == "expand_by_ranks"]
    constants = _fitted(OF_LAUNCHES, FITTED, lambda tried: [half_us(point, device, tried) / point.us for point in own])
    by_ranks = least_squares(
        lambda tried: [half_us(point, device, constants, ByRanks(*tried)) / point.us for point in other],
        np.array(BY_RANKS),
    )
    return _fitted(OF_STEPS, constants, partial(_of_steps, table)), ByRanks(*by_ranks.tolist())


def _of_steps(table: dict[str, Any], tried: Constants) -> list[float]:
    return [point.ratio for each in (steps, beside) for point in each(table, tried) if point.own]


def _fitted(names: Sequence[str], start: Constants, ratios: Callable[[Constants], list[float]]) -> Constants:
    """Return the constants with those of these names fitted, and the others as they are."""

    def replaced(values: Floats) -> Constants:
        return start._replace(**dict(zip(names, values.tolist(), strict=True)))

    first = np.array([getattr(start, name) for name in names])
    return replaced(least_squares(lambda values: ratios(replaced(values)), first))


def least_squares(ratios: Callable[[Floats], list[float]], start: Floats) -> Floats:
    """Return the values with the least logarithms of ratios, by damped Gauss-Newton steps in the values' logarithms.

    Ratios far off count less (Huber's weights at 0.15).
    """
    where = np.log(start)
    for _ in range(ROUNDS):
        now = np.log(ratios(np.exp(where)))
        shifted = [np.log(ratios(np.exp(where + 1e-3 * one))) for one in np.eye(len(where))]
        slopes = (np.array(shifted) - now).T / 1e-3
        weights = np.minimum(1.0, 0.15 / np.maximum(np.abs(now), 1e-9))
        normal = slopes.T @ (slopes * weights[:, None])
        normal += DAMPING * np.eye(len(where))
        where = where - np.clip(np.linalg.solve(normal, slopes.T @ (weights * now)), -0.5, 0.5)
    found: Floats = np.exp(where)
    return found


def summary(points: Sequence[ModelledPoint]) -> str:
    ratios = sorted(point.ratio for point in points)
    off = statistics.median(max(ratio, 1 / ratio) for ratio in ratios)
    far = sum(not 1 / 1.35 <= ratio <= 1.35 for ratio in ratios)
    return (
        f"{len(ratios)} points, {ratios[0]:.2f} to {ratios[-1]:.2f}, median {off - 1:.1%} off, {far} by more than 35%"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", action="store_true", help="every launch that was measured by itself, too")
    args = parser.parse_args()
    table = read()
    constants, by_ranks = fit(table)
    print(constants, by_ranks, sep="\n")
    launches, whole, before = half_points(table), [*steps(table), *beside(table)], list(persistent())
    figures = Table({"point": "<58", "measured": "9.1f", "model": "8.1f", "ratio": "8.2f", "": "<20"})
    print(figures.heading())
    for point in [*(launches if args.all else []), *whole, *before]:
        note = "" if point.own else "  (spills registers)"
        print(figures.line(point.name, point.measured, point.modelled, point.ratio, note))
    print("launches alone:", summary(launches))
    print("steps:", summary([point for point in whole if point.own]))
    print("the kernel before, on both cards:", summary(before))
    return 0


if __name__ == "__main__":
    sys.exit(main())
