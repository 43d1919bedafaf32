from types import ModuleType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from benchmarks.kernels.problem import Adapter, BypassProblem, Scenario


def test_the_loop_adds_what_the_formula_says(kit: ModuleType, peers: Any, scenario: Scenario) -> None:
    kit.check(peers.contender("peft"), kit.problem_of(scenario, torch.float32))


def test_the_loop_does_what_pefts_own_layer_does(kit: ModuleType, peers: Any) -> None:
    problem = kit.problem_of(Scenario("decode", 5, (4, 8)), torch.float32)
    names = [str(s.slot) for s in problem.scenario.segments for _ in range(s.start, s.end)]
    expected = problem.y[0][1] + pefts_layer(problem)(problem.x[0][:, None], adapter_names=names)[:, 0]
    peers.contender("peft").prepare(problem)()
    assert torch.allclose(problem.y[0][1], expected, atol=1e-5)


@torch.no_grad()
def pefts_layer(problem: BypassProblem) -> Any:
    """Of the second site, over a base that is zero."""
    model = torch.nn.ModuleDict({"linear": torch.nn.Linear(64, 32, bias=False)})
    model["linear"].weight.zero_()
    configs = [LoraConfig(r=a.rank, lora_alpha=a.rank, target_modules=["linear"]) for a in problem.adapters]
    wrapped = get_peft_model(model, configs[0], adapter_name="0")
    wrapped.add_adapter("1", configs[1])
    layer = wrapped.base_model.model["linear"].eval()
    for name, adapter in enumerate(problem.adapters):
        write(layer, str(name), adapter)
    return layer


def write(layer: Any, name: str, adapter: Adapter) -> None:
    layer.lora_A[name].weight.copy_(adapter.a[0][adapter.rank :])
    layer.lora_B[name].weight.copy_(adapter.b[0][1].t())
