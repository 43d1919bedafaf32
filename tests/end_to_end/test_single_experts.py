"""Adapters on the linears of single experts, as transformers 4 named them: served as they were trained."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from peftserve.adapters.errors import UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import ExpertLowRank
from peftserve.server.config import EngineConfig
from peftserve.server.engine import Engine
from peftserve.server.engine.model.loading import LoadedModel, load_model
from peftserve.server.wire.messages import AddRequest, SamplingParams, WeightedAdapter

NAMES = {"mixtral": ("w1", "w3", "w2")}
USUAL = ("gate_proj", "up_proj", "down_proj")
PROMPTS = [[5, 17, 42, 99, 7, 250, 31, 8], list(range(20, 60))]
MAX_TOKENS = 5
CLEAR = 1e-3


class OldExperts(nn.Module):
    """Experts as modules of linears, as they were, over weights of the stacked ones."""

    def __init__(self, stacked: Any, names: tuple[str, str, str]) -> None:
        super().__init__()
        self._act, self._names = stacked.act_fn, names
        for expert, (both, down) in enumerate(zip(stacked.gate_up_proj, stacked.down_proj, strict=True)):
            one = nn.Module()
            for name, weight in zip(names, (*both.chunk(2), down), strict=True):
                linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
                linear.weight = nn.Parameter(weight.detach().clone())
                one.add_module(name, linear)
            self.add_module(str(expert), one)

    def forward(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        gate, up, down = self._names
        out = torch.zeros_like(x)
        for expert, one in ((name, child) for name, child in self.named_children() if name.isdigit()):
            rows, places = torch.where(index == int(expert))
            inner = self._act(getattr(one, gate)(x[rows])) * getattr(one, up)(x[rows])
            out = out.index_add(0, rows, getattr(one, down)(inner) * weights[rows, places, None])
        return out


def old_model(oracle: ModuleType, folder: Path, architecture: str) -> Any:
    model = copy.deepcopy(oracle.plain_model(folder))
    for name, module in list(model.named_modules()):
        if name.endswith(".experts"):
            model.set_submodule(name, OldExperts(module, NAMES.get(architecture, USUAL)))
    return model


def trained(model: Any, folder: Path, config: peft.PeftConfig, rename: dict[str, str]) -> Any:
    """Have PEFT make an adapter on the old model, and save it with the names that the modules had."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(model.config, "model_type", "unknown")  # whose modules PEFT takes for what they are
        adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for own, old in rename.items():
        tensors = {key.replace(own, old): tensor for key, tensor in tensors.items()}
    save_file(tensors, file, {"format": "pt"})
    return adapted.eval()


def answers(engine: Engine, digests: list[str]) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, ignore_eos=True)
    for digest in digests:
        for i, prompt in enumerate(PROMPTS):
            name = f"{digest}/{i}"
            tokens[name] = []
            parts = [WeightedAdapter(digest)]
            engine.add_request(AddRequest(request_id=name, prompt_token_ids=prompt, sampling=sampling, adapters=parts))
    while engine.has_work():
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
    return tokens


def upload(engine: Engine, adapter: Path) -> Any:
    inspection = engine.start_inspection(adapter.name, adapter)
    while not inspection.done():
        engine.poll()
    return inspection.result()


def check(oracle: ModuleType, got: list[int], model: Any, prompt: list[int]) -> None:
    answer = oracle.peft_generate(model, prompt, MAX_TOKENS)
    sure = next((i for i, margin in enumerate(answer.margins) if margin < CLEAR), MAX_TOKENS)
    assert got[:sure] == answer.token_ids[:sure]
    assert sure > 0


def configs(names: tuple[str, str, str]) -> dict[str, peft.LoraConfig]:
    gate, up, down = names
    return {
        "all": peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", gate, up, down]),
        "ranks": peft.LoraConfig(
            r=2,
            use_rslora=True,
            target_modules=["v_proj", gate, down],
            rank_pattern={rf"layers.0.*experts.1.{gate}": 5, down: 3},
            alpha_pattern={rf"experts.2.{down}": 7},
        ),
        "some": peft.LoraConfig(r=4, target_modules=rf".*\.1\..*experts\.[02]\.({gate}|{up})"),
    }


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_tokens_are_those_of_the_model_of_linears(architecture: str, oracle: ModuleType, tmp_path: Path) -> None:
    folder = oracle.tiny_model(architecture, 3, tmp_path / "base")
    names = NAMES.get(architecture, USUAL)
    rename = {".mlp.": ".block_sparse_moe."} if architecture == "mixtral" else {}
    wanted = {
        kind: trained(old_model(oracle, folder, architecture), tmp_path / kind, config, rename)
        for kind, config in configs(names).items()
    }
    engine = Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", max_batch_tokens=32))
    try:
        facts = {kind: upload(engine, tmp_path / kind) for kind in wanted}
        got = answers(engine, list(wanted))
    finally:
        engine.close()
    for kind, model in wanted.items():
        for i, prompt in enumerate(PROMPTS):
            check(oracle, got[f"{kind}/{i}"], model, prompt)
    assert facts["all"].primitives["expert_low_rank"] > 0


@pytest.fixture(scope="module")
def mixtral(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LoadedModel]:
    folder = oracle.tiny_model("mixtral", 3, tmp_path_factory.mktemp("mixtral") / "base")
    return folder, load_model(EngineConfig(model=str(folder), device="cpu", dtype="float32"))


def written(folder: Path, raw: dict[str, Any], linears: list[str]) -> Path:
    """Write an adapter of rank 2 by hand, with the names of transformers 4."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(2):
        for linear in linears:
            places = [f"experts.{expert}.{linear}" for expert in range(4)] if linear.startswith("w") else [linear]
            for place in places:
                key = f"base_model.model.model.layers.{layer}.block_sparse_moe.{place}"
                width_in, width_out = {"w2": (96, 64), "gate": (64, 4)}.get(linear, (64, 96))
                tensors[f"{key}.lora_A.weight"] = 0.3 * torch.randn(2, width_in, generator=generator)
                tensors[f"{key}.lora_B.weight"] = 0.3 * torch.randn(width_out, 2, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": linears, **raw}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("linears", [["w1", "w2", "w3"], ["w2", "gate"], ["gate"], ["w1", "w2", "w3", "gate"]])
def test_deltas_are_those_of_pefts_own_conversion(
    linears: list[str], mixtral: tuple[Path, LoadedModel], oracle: ModuleType, tmp_path: Path
) -> None:
    folder, loaded = mixtral
    adapter = written(tmp_path / "a", {}, linears)
    bypass = compile_adapter(adapter, loaded.sites.table, torch.float32, model=loaded.twin).bypass
    converted = oracle.peft_model(folder, adapter)
    found = 0
    for name, module in converted.base_model.model.named_modules():
        if isinstance(module, peft.tuners.lora.layer.ParamWrapper):
            site = name.replace(".base_layer", "")
            own = [p for p in bypass.sites[site] if getattr(p, "parameter", "weight") == module.parameter_name]
            torch.testing.assert_close(own[0].b @ own[0].a, module.get_delta_weight("default"))  # type: ignore[attr-defined]
            found += 1
    assert found == sum(len(primitives) for primitives in bypass.sites.values()) > 0


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "dora": (lambda: {"use_dora": True}, "only plain LoRA is supported"),
    "pissa": (lambda: {"init_lora_weights": "pissa"}, "only plain LoRA is supported"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_other_variants_are_refused(kind: str, mixtral: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    make, why = REFUSED[kind]
    adapter = written(tmp_path / "a", make(), ["w1", "w2", "w3"])
    with pytest.raises(UnsupportedAdapter, match=why):
        compile_adapter(adapter, mixtral[1].sites.table, torch.float32, model=mixtral[1].twin)


def test_what_an_expert_lacks_is_zero(mixtral: tuple[Path, LoadedModel], tmp_path: Path) -> None:
    adapter = written(tmp_path / "a", {"target_modules": ["w1"]}, ["w1"])
    bypass = compile_adapter(adapter, mixtral[1].sites.table, torch.float32).bypass
    (primitive,) = bypass.sites["model.layers.0.mlp.experts"]
    assert isinstance(primitive, ExpertLowRank)
    assert primitive.rank == 2
    assert primitive.b[:, 96:].count_nonzero() == 0
