"""The check of contenders against float64, row by row. None that fails it is timed."""

import torch

from .contender import Run
from .problem import BypassProblem

TOLERANCES = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 1e-4}
"""Of a row's norm. All layers add to the same outputs, with one rounding each, so this is several of dtype's steps."""


class Reference:
    """The problem's outputs before and after one call, in float64. Leaves the outputs as they were."""

    def __init__(self, problem: BypassProblem) -> None:
        self._outputs = [y for sites in problem.y for y in sites]
        self._before = [y.clone() for y in self._outputs]
        self._delta = [delta for sites in deltas(problem) for delta in sites]
        self.tolerance = TOLERANCES[problem.arena.dtype]

    def error(self, run: Run) -> float:
        """Return the largest relative error of any row, after one call and after a second on top of it.

        The second call shows what the first has left in the contender's own buffers. NaN is infinitely wrong.
        """
        self.restore()
        errors = [self._error_after(run, calls) for calls in (1, 2)]
        self.restore()
        return max(errors)

    def restore(self) -> None:
        for y, before in zip(self._outputs, self._before, strict=True):
            y.copy_(before)

    def _error_after(self, run: Run, calls: int) -> float:
        run()
        rows = [
            _row_errors(y, before.double() + calls * delta)
            for y, before, delta in zip(self._outputs, self._before, self._delta, strict=True)
        ]
        return float(torch.cat(rows).nan_to_num(nan=float("inf")).max())


def _row_errors(got: torch.Tensor, want: torch.Tensor) -> torch.Tensor:
    off: torch.Tensor = torch.linalg.vector_norm(got.double() - want, dim=1)
    return off.div(torch.linalg.vector_norm(want, dim=1))


def deltas(problem: BypassProblem) -> list[list[torch.Tensor]]:
    """Return what one call adds by the formula, summed over all layers: float64, by group of one layer and by site."""
    sums = [[torch.zeros(y.shape, dtype=torch.float64, device=y.device) for y in sites] for sites in problem.y]
    for slot, weight, start, end in problem.scenario.segments:
        adapter = problem.adapters[slot]
        for index, x, outputs in problem.calls():
            h = x[start:end].double() @ adapter.a[index].double().t()
            parts = h.split(adapter.rank, 1)
            for position in range(len(outputs)):
                total = sums[index % problem.layer_groups][position]
                total[start:end] += weight * (parts[position] @ adapter.b[index][position].double())
    return sums
