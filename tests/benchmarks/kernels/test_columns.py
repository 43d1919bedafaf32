"""What is said of spare columns follows from roundings and bytes."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def columns(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("kernels.columns")


def test_one_half_of_h_loses_less_than_adding_to_outputs_in_memory(columns: ModuleType) -> None:
    small, large = (columns.errors(16, 256, 64, 8, ratio) for ratio in (0.1, 1.0))
    for found in (small, large):
        assert found["once"] <= found["h in two"] * 1.001 <= found["h in one"] * 1.002
        assert found["h in one"] < found["PEFT"]
    assert small["h in one"] < small["once"] * 1.05 < small["behind"]


def test_the_model_of_a_prefill_is_within_a_third_of_what_was_measured(columns: ModuleType) -> None:
    for (rows, adapters), (base, measured) in columns.STEPS.items():
        assert 2 / 3 < sum(columns.added(rows, adapters, base)) / measured < 4 / 3
