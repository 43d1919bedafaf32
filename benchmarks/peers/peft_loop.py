"""What PEFT does for a batch of several adapters: at each linear, for each adapter, its rows gathered, multiplied, and
added back by index.

In PEFT itself the indices are Python lists, which every linear copies to the device anew; that is left out, so that it
can be captured in a graph. `tests/benchmarks/peers/test_peft_loop.py` compares it with PEFT's own layer.
"""

import torch

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.steps import Step


def contenders() -> list[Contender]:
    return [PeftLoop()]


class PeftLoop:
    name = "peft"
    version = ""

    def prepare(self, step: Step) -> Run:
        device = step.arena.device
        rows = {s.slot: torch.arange(s.start, s.end, device=device) for s in step.scenario.segments}

        def run() -> None:
            for index, x, outputs in step.calls():
                for position, y in enumerate(outputs):
                    for slot, of_adapter in rows.items():
                        rank = step.adapters[slot].rank
                        a = step.adapters[slot].a[index][position * rank : (position + 1) * rank]
                        b = step.adapters[slot].b[index][position]
                        y[of_adapter] += (x[of_adapter] @ a.t()) @ b * 1.0

        return run
