"""PEFT's own mixed batch (`adapter_names`) as a contender of the kernel benchmark, without the base's products."""

from functools import partial

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import nn

from ..kernels.contender import Run
from ..kernels.problem import BypassProblem


class Given(nn.Linear):
    """A base linear whose output is given: what is timed is what PEFT does beside the base's product."""

    def __init__(self, in_features: int, output: torch.Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, output.shape[-1]
        self.weight = nn.Parameter(output.new_zeros(1, 1).expand(self.out_features, in_features), requires_grad=False)
        self.bias = None
        self.output = output

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.output


class Peft:
    name = "peft"
    version = ""

    def prepare(self, problem: BypassProblem) -> Run:
        """Return a run in which each token is a sample of PEFT's batch, as in decode. PEFT names adapters by sample."""
        names = [str(s.slot) for s in problem.scenario.segments for _ in range(s.start, s.end)]
        calls = [
            partial(_wrap(problem, index, position, y).forward, x, adapter_names=names)
            for index, x, outputs in problem.calls()
            for position, y in enumerate(outputs)
        ]

        def run() -> None:
            for call in calls:
                call()

        return run


def _wrap(problem: BypassProblem, index: int, position: int, y: torch.Tensor) -> Linear:
    base = Given(problem.groups[index].in_features, y)
    layer: Linear | None = None
    for slot, adapter in enumerate(problem.adapters):
        name, config = str(slot), LoraConfig(r=adapter.rank, lora_alpha=adapter.rank, init_lora_weights=False)
        if layer is None:
            layer = Linear(base, name, config, r=adapter.rank, lora_alpha=adapter.rank)
        else:
            layer.update_layer(name, adapter.rank, lora_alpha=adapter.rank, config=config)
        a = adapter.a[index][position * adapter.rank :][: adapter.rank]
        layer.lora_A[name].weight = nn.Parameter(a, requires_grad=False)
        layer.lora_B[name].weight = nn.Parameter(adapter.b[index][position].t().contiguous(), requires_grad=False)
    assert layer is not None
    return layer.eval()
