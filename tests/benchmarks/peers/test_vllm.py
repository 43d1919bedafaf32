import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.kernels.problem import Scenario


@pytest.mark.slow
def test_vllm_adds_what_the_formula_says(
    kit: ModuleType, peers: Any, scenario: Scenario, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = peers.contender("vllm")
    problem = kit.problem_of(scenario, torch.float16)
    assert vllm.prepare(problem)
    shrink_op = sys.modules["vllm.lora.ops.triton_ops.lora_shrink_op"]
    configs = shrink_op.get_lora_op_configs
    # 64 parts of a sum, of which one is not empty, would take the interpreter a minute.
    monkeypatch.setattr(shrink_op, "get_lora_op_configs", lambda *a, **k: {**configs(*a, **k), "split_k": 2})
    kit.check(vllm, problem)


def test_what_vllm_cannot_run(kit: ModuleType, peers: Any) -> None:
    scenario = kit.STEPS[0]
    vllm = peers.contender("vllm")
    assert vllm.prepare(kit.problem_of(scenario, torch.float32)) is None
    assert vllm.prepare(kit.problem_of(scenario, torch.float16, join=False)) is None
