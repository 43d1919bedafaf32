import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from peftserve.kernels.layout import Group


@pytest.fixture(scope="module")
def floor() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "floor.py"
    spec = importlib.util.spec_from_file_location("floor", path)
    assert spec
    assert spec.loader
    module = sys.modules["floor"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_step_by_hand(floor: ModuleType) -> None:
    """Two sites on one input of 10 features, of 4 and 6 outputs; two adapters of ranks 2 and 3 on 5 and 1 tokens."""
    shares = [floor.Share(2, 5), floor.Share(3, 1), floor.Share(9, 0)]
    cost = floor.cost_of([Group(10, (4, 6))], shares, torch.float16)
    elements = (2 + 3) * (10 + 4 + 10 + 6)
    assert cost.factors == 2 * elements
    assert cost.activations == 2 * 6 * (10 + 2 * (4 + 6))
    assert cost.flops == 2 * (5 * 2 * 30 + 1 * 3 * 30)


def test_one_adapter_of_rank_16_on_llama_8b_is_84_megabytes(floor: ModuleType) -> None:
    shape = floor.SHAPES["llama-8b"]
    cost = floor.cost_of(shape.groups, [floor.Share(16, 1)], torch.bfloat16)
    assert cost.factors == pytest.approx(84e6, rel=0.01)
    many = floor.cost_of(shape.groups, [floor.Share(16, 1)] * 64, torch.bfloat16)
    assert many.factors / 3.0e12 == pytest.approx(1.8e-3, rel=0.01)


@pytest.mark.parametrize(("num_bytes", "flops", "seconds"), [(100, 10, 10.0), (100, 1000, 20.0)])
def test_whichever_takes_longer(floor: ModuleType, num_bytes: int, flops: int, seconds: float) -> None:
    machine = floor.Machine(bandwidth=10.0, peak=50.0)
    assert machine.seconds(floor.Cost(num_bytes - 40, 40, flops)) == seconds
