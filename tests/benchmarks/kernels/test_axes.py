import pytest
import torch

from benchmarks.kernels.axes import AXES, CACHE_BYTES, label, layers_for, scenarios, table
from benchmarks.kernels.model.measured import EXPERIMENT, PEERS, read
from benchmarks.kernels.problem import SHAPES, Scenario
from benchmarks.kernels.roofline import least_work, shares_of


@pytest.mark.parametrize("device", AXES)
@pytest.mark.parametrize("quick", [False, True])
def test_every_adapter_has_a_token_and_no_step_comes_twice(device: str, quick: bool) -> None:
    found = scenarios(device, ("decode", "prefill"), quick=quick)
    assert len(found) == len(set(found))
    assert all(len(s.segments) == len(s.ranks) for s in found)
    assert {s.phase for s in found} == {"decode", "prefill"}


def test_at_each_step_of_the_table_peers_have_been_measured() -> None:
    found = {(s.tokens, len(s.ranks), label(s.ranks)) for s in table(("decode", "prefill"))}
    assert len(found) == 19
    for name, other in ((PEERS, {(512, 1, "16")}), (EXPERIMENT, set())):
        points = read(name)
        steps = [*points["steps"], *points.get("prefill", [])]
        assert found | other == {(step["tokens"], step["adapters"], step["ranks"]) for step in steps}


def test_mixed_ranks_take_turns() -> None:
    (found,) = scenarios("cpu", ("decode",), quick=True)
    assert found.ranks == (8, 16, 32, 64) * 2
    assert label(found.ranks) == "8-64"
    assert label((16, 16)) == "16"


def test_layers_do_not_fit_the_cache_unless_the_model_does() -> None:
    shape = SHAPES["llama-8b"]
    scenario = Scenario("decode", 8, (16,) * 8)
    layers = layers_for(scenario, shape, torch.float32, "cpu")
    assert layers < shape.layers
    assert least_work(shape.layer * layers, shares_of(scenario), torch.float32).factors >= 2 * CACHE_BYTES
    assert layers_for(Scenario("decode", 1, (1,)), SHAPES["smollm-135m"], torch.float32, "cpu") == 30
