"""PEFT's way with a batch of several adapters: at each linear, each adapter's rows are gathered, multiplied, put back.

In PEFT itself the indices are Python lists, which every linear copies to the device anew; that is left out, so that it
can be captured in a graph. `tests/benchmarks/peers/test_peft_loop.py` compares it with PEFT's own layer.
"""

import torch

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.problem import BypassProblem


def contenders() -> list[Contender]:
    return [PeftLoop()]


class PeftLoop:
    name = "peft"
    version = ""

    def prepare(self, problem: BypassProblem) -> Run:
        device = problem.arena.device
        rows = {s.slot: torch.arange(s.start, s.end, device=device) for s in problem.scenario.segments}

        def run() -> None:
            for index, x, outputs in problem.calls():
                for position, y in enumerate(outputs):
                    for slot, of_adapter in rows.items():
                        rank = problem.adapters[slot].rank
                        a = problem.adapters[slot].a[index][position * rank : (position + 1) * rank]
                        b = problem.adapters[slot].b[index][position]
                        y[of_adapter] += (x[of_adapter] @ a.t()) @ b * 1.0

        return run
