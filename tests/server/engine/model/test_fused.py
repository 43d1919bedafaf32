from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from peftserve.kernels.bypass.layout import Group
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine, assembly
from peftserve.server.engine.adapters.packing import SiteGroups
from peftserve.server.engine.model.fused import fuse_siblings, separate_modules
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

SITES = SiteGroups((Group(8, (6, 4)), Group(6, (8,))), {"q": (0, 0), "k": (0, 1), "o": (1, 0)})


def modules(*, bias: bool = True) -> dict[str, nn.Module]:
    return {"q": nn.Linear(8, 6, bias=bias), "k": nn.Linear(8, 4, bias=bias), "o": nn.Linear(6, 8)}


@pytest.mark.parametrize("bias", [True, False])
def test_modules_are_rows_of_one_and_keep_their_numbers(bias: bool) -> None:
    made = modules(bias=bias)
    before = {name: {k: v.clone() for k, v in m.state_dict().items()} for name, m in made.items()}
    fused = fuse_siblings(made, SITES)
    assert list(fused) == [0]
    assert separate_modules(made, SITES, fused) == [made["o"]]
    for name, module in made.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[name][key])
    x = torch.randn(3, 8)
    assert torch.allclose(fused[0](x), torch.cat([made["q"](x), made["k"](x)], 1), atol=1e-6)
    for part in ("weight", "bias") if bias else ("weight",):
        whole = getattr(fused[0], part).untyped_storage().data_ptr()
        assert {getattr(made[name], part).untyped_storage().data_ptr() for name in "qk"} == {whole}


def with_bias_on_one(made: dict[str, nn.Module]) -> None:
    made["k"] = nn.Linear(8, 4, bias=False)


def of_two_types(made: dict[str, nn.Module]) -> None:
    made["k"] = made["k"].half()


def of_a_class_of_its_own(made: dict[str, nn.Module]) -> None:
    made["k"] = type("Quantised", (nn.Linear,), {})(8, 4)


def with_a_tied_weight(made: dict[str, nn.Module]) -> None:
    made["embedding"] = nn.Embedding(4, 8)
    made["embedding"].weight = made["k"].weight  # type: ignore[assignment]


def with_a_layout_of_its_own(made: dict[str, nn.Module]) -> None:
    made["k"].forward = made["k"].forward  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "change",
    [with_bias_on_one, of_two_types, of_a_class_of_its_own, with_a_tied_weight, with_a_layout_of_its_own],
    ids=lambda change: change.__name__,
)
def test_others_stay_apart(change: Callable[[dict[str, nn.Module]], None]) -> None:
    made = modules()
    change(made)
    assert fuse_siblings(made, SITES) == {}


@pytest.mark.parametrize("architecture", ["llama_biased", "qwen2", "gemma2"])
def test_the_engines_tokens_are_those_of_peft(
    oracle: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """The base, LoRA, and what changes inputs and outputs of single modules, in one batch."""
    monkeypatch.setattr(assembly, "fused_rows", lambda device: None)
    model = oracle.tiny_model(architecture, 3, tmp_path / "model")
    kind = oracle.kind_of(oracle.plain_model(model).config.model_type)
    adapters = {
        name: oracle.method_adapter(model, tmp_path / name, oracle.CATALOG[name].make(kind))
        for name in ("lora", "ia3", "oft", "lora-bias-all")
    }
    prompt = [7, 81, 40, 41, 9, 210]
    wanted = {n: oracle.peft_generate(oracle.peft_model(model, made), prompt, 6) for n, made in adapters.items()}
    wanted[""] = oracle.peft_generate(oracle.plain_model(model), prompt, 6)
    engine = Engine(EngineConfig(model=str(model), device="cpu", dtype="float32"))
    try:
        assert any(group.fused is not None for group in engine._runner._hooks._groups)
        for name, adapter in adapters.items():
            engine.inspect_adapter(name, adapter)
        sampling = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
        for name in wanted:
            parts = [WeightedAdapter(name)] if name else []
            engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=parts))
        found: dict[str, list[int]] = {name: [] for name in wanted}
        while engine.has_work():
            for output in engine.step():
                assert not output.error
                found[output.request_id] += output.token_ids
        assert found == {name: answer.token_ids for name, answer in wanted.items()}
    finally:
        engine.close()
