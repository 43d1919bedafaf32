"""Measures what each way to serve a segment costs on this machine, once per process, in a few hundredths of a second.

The costs of two CPUs differ by more than an order of magnitude (see `products.py`), so no table of them would do.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from ..cpp.loading import load_loop
from ..cpp.tables import GroupTables, plan_loops
from ..layout import Group, GroupLayout
from .costs import FEW, Costs, ProductCost
from .factors import Factors, view_factors
from .products import EXPANDS, PLAIN, SHRINKS, WIDE
from .slices import LOOP, Slice, Way

MANY = 64  # rows, from which costs are taken on
FACTORS = ((8, 256), (64, 1024))  # ranks and widths
REPEATS = 7

Run = Callable[[], object]
Runs = Mapping[str, Run]


def costs_of(arena: torch.Tensor) -> Costs:
    if arena.device.type == "cpu":
        return _measure(arena.dtype)._replace(threads=torch.get_num_threads())
    return Costs({WIDE: ProductCost(1.0)}, {WIDE: ProductCost(1.0)})  # elsewhere this is only a reference


@cache
def _measure(dtype: torch.dtype) -> Costs:
    with torch.inference_mode(), _one_thread():
        return _costs(dtype, (1, FEW))._replace(many=_costs(dtype, (FEW, MANY)))


def _costs(dtype: torch.dtype, between: tuple[int, int]) -> Costs:
    """Fit costs to the times of segments of the one and the other number of rows."""
    corners = [(rows, rank, width) for rows in between for rank, width in FACTORS]
    shrinks, expands, loops = zip(*(_runs(*corner, dtype) for corner in corners), strict=True)
    one, two = ([(rows, n * rank * width) for rows, rank, width in corners] for n in (1, 2))
    return Costs(_solve(one, shrinks), _solve(one, expands), _solve(two, loops).get(LOOP))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Measure on one thread: what more threads gain is known (`ProductCost`), and they wait for busy cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _runs(rows: int, rank: int, width: int, dtype: torch.dtype) -> tuple[Runs, Runs, Runs]:
    """Return the shrinks and the expands of one segment, and both in the loop, each in every way that may pay."""
    arena, group = torch.zeros(2 * rank * width, dtype=dtype), Group(width, (width,))
    factors = view_factors(arena, 0, group, GroupLayout(0, (rank,), (rank * width,)))
    x, y, h = (torch.zeros(rows, columns, dtype=dtype) for columns in (width, width, rank))
    names = (PLAIN, WIDE) if dtype.itemsize <= 2 else (PLAIN,)
    shrinks = {name: _shrink(name, x, factors) for name in names}
    expands = {name: _expand(name, y, h, factors) for name in names}
    return shrinks, expands, _loop(group, Slice(factors, 1.0, 0, rows, Way(LOOP, LOOP)), x, y)


def _shrink(name: str, x: torch.Tensor, factors: Factors) -> Run:
    """Return a run of one shrink, with the view of its rows that segments take."""
    return lambda: SHRINKS[name](x[: len(x)], factors.a)


def _expand(name: str, y: torch.Tensor, h: torch.Tensor, factors: Factors) -> Run:
    return lambda: EXPANDS[name](y[: len(y)], h, factors.b[0])


def _loop(group: Group, only: Slice, x: torch.Tensor, y: torch.Tensor) -> Runs:
    """Return a run of the loop; empty where there is no compiled loop."""
    if (loop := load_loop(x.dtype)) is None:
        return {}
    plan = plan_loops(loop, [GroupTables(group)], {0: [only]})[0]
    return {LOOP: lambda: plan.add_(x, [y])}


def _solve(sizes: Sequence[tuple[int, int]], corners: Sequence[Runs]) -> dict[str, ProductCost]:
    """Solve for the cost of each way from its time at the four corners. sizes: rows and elements of factors of each."""
    equations = np.array([[1, rows, elements, rows * elements] for rows, elements in sizes])
    seconds = np.array([_fastest(list(runs.values())) for runs in corners])
    costs = [ProductCost(*map(float, column)) for column in np.linalg.solve(equations, seconds).clip(min=0).T]
    return dict(zip(corners[0], costs, strict=True))


def _fastest(runs: Sequence[Run]) -> list[float]:
    """Return the least seconds of each run over several rounds in turns, without what neighbours add."""
    rounds = [[_seconds(run) for run in runs] for _ in range(REPEATS)]
    return [min(times) for times in zip(*rounds, strict=True)]


def _seconds(run: Run) -> float:
    """Return the seconds of a run by the thread's own clock, which stops while another process has the core."""
    start = time.thread_time()
    run()
    return time.thread_time() - start
