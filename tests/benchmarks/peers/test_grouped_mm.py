from types import ModuleType
from typing import Any

import torch

from benchmarks.kernels.problem import Scenario


def test_grouped_products_add_what_the_formula_says(kit: ModuleType, peers: Any, scenario: Scenario) -> None:
    kit.check(peers.contender("grouped_mm"), kit.problem_of(scenario, torch.float32, join=False))
