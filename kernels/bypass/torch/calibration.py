"""What each way of serving a segment costs on this machine, measured once per process in a few hundredths of a second.

The costs of two CPUs differ by more than an order of magnitude (see `products.py`), so that no table of them would do.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from ..layout import Group, GroupLayout
from .bag_plan import plan_bags
from .costs import Cost, Costs
from .factors import view_factors
from .packed import plan_packed
from .products import PLAIN, WIDE, wide_expand_, wide_shrink
from .slices import DOTS, ROWWISE, SUMS, Slice, Way

CORNERS = tuple((rows, rank, width) for rows in (1, 16) for rank, width in ((8, 256), (64, 1024)))
REPEATS = 7

Runs = Mapping[str, Callable[[], object]]


def costs_of(arena: torch.Tensor) -> Costs:
    if arena.device.type == "cpu":
        return _measure(arena.dtype)._replace(threads=torch.get_num_threads())
    return Costs({WIDE: Cost(1.0)}, {WIDE: Cost(1.0)})  # elsewhere this is only a reference


@cache
def _measure(dtype: torch.dtype) -> Costs:
    with torch.inference_mode(), _one_thread():
        shrinks, expands = zip(*(_runs(*corner, dtype) for corner in CORNERS), strict=True)
        return Costs(_solve(shrinks), _solve(expands))


@contextmanager
def _one_thread() -> Iterator[None]:
    """What more gain is known (`Cost`), and each call waits milliseconds for a core that another process has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _runs(rows: int, rank: int, width: int, dtype: torch.dtype) -> tuple[Runs, Runs]:
    """The shrinks and the expands of one segment, each in every way that may pay in the dtype."""
    arena, group = torch.zeros(2 * rank * width, dtype=dtype), Group(width, (width,))
    factors = view_factors(arena, 0, group, GroupLayout(0, (rank,), (rank * width,)))
    a, b = factors.a, factors.b[0]
    x, y, h = (torch.zeros(rows, columns, dtype=dtype) for columns in (width, width, rank))
    bags = plan_bags(arena, [group], {0: [Slice(factors, 1.0, 0, rows, Way(DOTS, SUMS))]})[0]
    plain, rowwise = (
        plan_packed([group], {0: [Slice(factors, 1.0, 0, rows, Way(PLAIN, expand))]})[0] for expand in (PLAIN, ROWWISE)
    )
    shrinks: Runs = {DOTS: lambda: bags.shrink(x), PLAIN: lambda: plain.shrink(x)}
    expands: Runs = {
        SUMS: lambda: bags.sums.expand_(h.flatten(), [y]),
        PLAIN: lambda: plain.expand_([y]),
        ROWWISE: lambda: rowwise.expand_([y]),
    }
    if dtype.itemsize > 2:
        return shrinks, expands
    return {**shrinks, WIDE: lambda: wide_shrink(x[:rows], a)}, {**expands, WIDE: lambda: wide_expand_(y[:rows], h, b)}


def _solve(corners: Sequence[Runs]) -> dict[str, Cost]:
    """The cost of each way from its time at the four corners."""
    equations = np.array([[1, rows, rank * width, rows * rank * width] for rows, rank, width in CORNERS])
    seconds = np.array([_fastest(list(runs.values())) for runs in corners])
    costs = [Cost(*map(float, column)) for column in np.linalg.solve(equations, seconds).clip(min=0).T]
    return dict(zip(corners[0], costs, strict=True))


def _fastest(runs: Sequence[Callable[[], object]]) -> list[float]:
    """The least seconds of each, of several rounds in turns: what a busy neighbour adds is no cost of theirs."""
    rounds = [[_seconds(run) for run in runs] for _ in range(REPEATS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
