import sys
from importlib.util import module_from_spec, spec_from_file_location
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.kernels.problem import Scenario

# torch.compile, a decorator of some of SGLang's functions, imports what torch itself says is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*script_method.*:DeprecationWarning")


@pytest.mark.parametrize("name", ["sglang-v2", "sglang-csgmv"])
def test_sglang_adds_what_the_formula_says(
    kit: ModuleType, peers: Any, scenario: Scenario, name: str, interpreter: None
) -> None:
    kit.check(peers.contender(name), kit.problem_of(scenario, torch.float16))


def test_plans_are_read_without_pydantic_as_with_it(peers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    top = peers.contender("sglang-v2")._top
    with_it = peers.module("sglang").load(top).plan
    spec = spec_from_file_location("plan_without_pydantic", with_it.__file__)
    without = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, without)
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, "pydantic")
        peers.module("standins").stand_in_for_pydantic()
        spec.loader.exec_module(without)
        made = without.load_plans("sm90").rows
    expected = with_it.load_plans("sm90").rows
    assert len(made) == len(expected) > 10
    assert [row.model_dump() for row in made] == [row.model_dump() for row in expected]


def test_more_rows_than_its_small_route_takes(kit: ModuleType, peers: Any, interpreter: None) -> None:
    kit.check(peers.contender("sglang-v2"), kit.problem_of(Scenario("prefill", 530, (8, 16)), torch.float16))
