"""torch's grouped product: one for a group's A, one for each site's B, with adapters padded to the largest rank."""

import torch

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.problem import BypassProblem


def contenders() -> list[Contender]:
    return [GroupedMm()]


class GroupedMm:
    name = "grouped_mm"
    version = torch.__version__

    def prepare(self, problem: BypassProblem) -> Run | None:
        if problem.arena.is_cuda and problem.arena.dtype != torch.bfloat16:
            return None  # torch refuses other dtypes there
        multiply = getattr(torch.nn.functional, "grouped_mm", torch._grouped_mm)
        ends = torch.tensor([s.end for s in problem.scenario.segments], dtype=torch.int32, device=problem.arena.device)
        stacked = [_stacked(problem, index) for index in range(len(problem.groups))]
        rank = max(problem.scenario.ranks)

        def run() -> None:
            for index, x, outputs in problem.calls():
                a, b = stacked[index]
                h = multiply(x, a, offs=ends)
                for position, y in enumerate(outputs):
                    y += multiply(h[:, position * rank : (position + 1) * rank], b[position], offs=ends)

        return run


def _stacked(problem: BypassProblem, index: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Stack the factors of the adapters with rows.

    A: (adapters, in_features, sites · rank), column-major. B: by site, (adapters, rank, out_features), row-major.
    """
    group, rank = problem.groups[index], max(problem.scenario.ranks)
    slots = [s.slot for s in problem.scenario.segments]
    a = problem.arena.new_zeros(len(slots), len(group.out_features), rank, group.in_features)
    b = [problem.arena.new_zeros(len(slots), rank, width) for width in group.out_features]
    for place, slot in enumerate(slots):
        adapter = problem.adapters[slot]
        a[place, :, : adapter.rank] = adapter.a[index].view(len(b), adapter.rank, -1)
        for site, factor in zip(b, adapter.b[index], strict=True):
            site[place, : adapter.rank] = factor
    return a.flatten(1, 2).transpose(1, 2), b
