"""torch's grouped product: one for a group's A, one for each site's B, with adapters padded to the largest rank."""

import torch

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.steps import Step


def contenders() -> list[Contender]:
    return [GroupedMm()]


class GroupedMm:
    name = "grouped_mm"
    version = torch.__version__

    def prepare(self, step: Step) -> Run | None:
        if step.arena.is_cuda and step.arena.dtype != torch.bfloat16:
            return None  # torch refuses other dtypes there
        multiply = getattr(torch.nn.functional, "grouped_mm", torch._grouped_mm)
        ends = torch.tensor([s.end for s in step.scenario.segments], dtype=torch.int32, device=step.arena.device)
        stacked = [_stacked(step, index) for index in range(len(step.groups))]
        rank = max(step.scenario.ranks)

        def run() -> None:
            for index, x, outputs in step.calls():
                a, b = stacked[index]
                h = multiply(x, a, offs=ends)
                for position, y in enumerate(outputs):
                    y += multiply(h[:, position * rank : (position + 1) * rank], b[position], offs=ends)

        return run


def _stacked(step: Step, index: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A of the adapters with rows: (adapters, in_features, sites · rank), column-major. B by site, row-major."""
    group, rank = step.groups[index], max(step.scenario.ranks)
    slots = [s.slot for s in step.scenario.segments]
    a = step.arena.new_zeros(len(slots), len(group.out_features), rank, group.in_features)
    b = [step.arena.new_zeros(len(slots), rank, width) for width in group.out_features]
    for place, slot in enumerate(slots):
        adapter = step.adapters[slot]
        a[place, :, : adapter.rank] = adapter.a[index].view(len(b), adapter.rank, -1)
        for site, factor in zip(b, adapter.b[index], strict=True):
            site[place, : adapter.rank] = factor
    return a.flatten(1, 2).transpose(1, 2), b
