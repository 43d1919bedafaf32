"""A method that peftserve does not know is added as CONTRIBUTING.md says: one function, in one file, and one row."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.config import notes_on_fields, read_config
from peftserve.adapters.peft.methods import METHODS, Method
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

RANK, MAX_TOKENS = 3, 8
PROMPTS = [[7, 81, 40, 41, 9, 210], [5, 6]]
DIGEST = "a" * 64
MODULES = ["q_proj", "down_proj"]
CONFIG = {
    "peft_type": "GATED_LORA",
    "target_modules": MODULES,
    "r": RANK,
    "gate_dropout": 0.1,
    "task_type": "CAUSAL_LM",
    "inference_mode": True,
}


@pytest.fixture
def gated_lora(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the two steps: the file of the function, as if it were in adapters/peft, and a row that names it."""
    name = "peftserve.adapters.peft.example_method"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("example_method.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, name, module)
    row = Method("example_method.compile_gated_lora", reads="r", ignored="gate_dropout")
    monkeypatch.setitem(METHODS, "GATED_LORA", row)


@pytest.fixture(scope="module")
def model(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = oracle.tiny_model("llama", 3, tmp_path_factory.mktemp("base") / "model")
    return folder


@pytest.fixture
def adapter(oracle: ModuleType, model: Path, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint as PEFT would save it, and its delta of each weight."""
    generator = torch.Generator().manual_seed(4)
    tensors, deltas = {}, {}
    for name, module in oracle.plain_model(model).named_modules():
        if name.endswith(tuple(MODULES)):
            outputs, inputs = module.weight.shape
            shapes = {"A": (RANK, inputs), "B": (outputs, RANK), "gate": (outputs,)}
            drawn = {part: torch.randn(shape, generator=generator) / 4 for part, shape in shapes.items()}
            tensors |= {f"base_model.model.{name}.gated_{part}": tensor for part, tensor in drawn.items()}
            deltas[f"{name}.weight"] = drawn["gate"].diag() @ drawn["B"] @ drawn["A"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    return tmp_path, deltas


@pytest.fixture
def engine(model: Path, device: str) -> Iterator[Engine]:
    engine = Engine(EngineConfig(model=str(model), device=device, dtype="float32"))
    yield engine
    engine.close()


@pytest.mark.usefixtures("gated_lora")
def test_an_added_method_is_served_beside_the_base(
    oracle: ModuleType, engine: Engine, model: Path, adapter: tuple[Path, dict[str, torch.Tensor]]
) -> None:
    folder, deltas = adapter
    facts = engine.inspect_adapter(DIGEST, folder)
    assert (facts.method, facts.rank, facts.primitives) == ("GATED_LORA", RANK, {"low_rank": len(deltas)})
    merged = oracle.plain_model(model)
    for name, delta in deltas.items():
        merged.get_parameter(name).add_(delta)
    wanted = _answers(oracle, merged) + _answers(oracle, oracle.plain_model(model))
    assert wanted[: len(PROMPTS)] != wanted[len(PROMPTS) :], "the adapter changes nothing: this test could not fail"
    assert _serve(engine) == wanted


def _answers(oracle: ModuleType, model: Any) -> list[list[int]]:
    answers = [oracle.peft_generate(model, prompt, MAX_TOKENS) for prompt in PROMPTS]
    assert all(min(answer.margins) > 1e-3 for answer in answers), "choose other prompts: two tokens are nearly even"
    return [answer.token_ids for answer in answers]


def _serve(engine: Engine) -> list[list[int]]:
    """Tokens of each prompt with the adapter, then of each with the bare base, all in one batch."""
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    found: dict[str, list[int]] = {}
    for adapters in ([WeightedAdapter(DIGEST)], []):
        for prompt in PROMPTS:
            key = str(len(found))
            found[key] = []
            engine.add_request(
                AddRequest(request_id=key, prompt_token_ids=prompt, sampling=sampling, adapters=adapters)
            )
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            found[output.request_id] += output.token_ids
    return list(found.values())


@pytest.mark.usefixtures("gated_lora")
def test_its_configuration_is_checked_like_any_other(adapter: tuple[Path, Any]) -> None:
    folder, _ = adapter
    assert read_config(folder).peft_type == "GATED_LORA"
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "use_magic": True}))
    assert read_config(folder).peft_type == "GATED_LORA"
    assert notes_on_fields({**CONFIG, "use_magic": True})[0].endswith("ignored: use_magic")


def test_without_its_row_it_is_refused(adapter: tuple[Path, Any]) -> None:
    with pytest.raises(InvalidAdapter, match="peft_type must name a method"):
        read_config(adapter[0])
