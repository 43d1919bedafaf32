"""HiRA and GLoRA against PEFT, and what of them is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import GloraConfig, HiraConfig
from safetensors.torch import load_file, save_file

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Bias, Dense, LowRank, OutputScale, Replacement

AsPeft = Callable[..., Bypass]
TARGETS = {"phi3": ["qkv_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"]}
LINEAR_ONLY = ["llama", "llama_biased", "qwen2", "gemma2", "phi3"]


def targets(architecture: str) -> list[str]:
    return TARGETS.get(architecture, ["q_proj", "v_proj", "down_proj"])


def quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 0.15 * torch.randn(parameter.shape, generator=generator)


def kinds(bypass: Bypass) -> set[type]:
    return {type(p) for primitives in bypass.sites.values() for p in primitives}


@pytest.mark.parametrize("architecture", [*LINEAR_ONLY, "gpt2"])
def test_hira(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = HiraConfig(target_modules=targets(architecture), r=4, fan_in_fan_out=architecture == "gpt2")
    assert kinds(as_peft(tiny_base(architecture), tmp_path, config)) == {Dense}


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_hira_on_embedding_and_head(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = HiraConfig(target_modules=["embed_tokens", "lm_head"], r=4)
    assert kinds(as_peft(tiny_base(architecture), tmp_path, config)) == {Replacement, Dense}


def test_hira_has_one_rank_whatever_its_pattern_says(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(llama, tmp_path, HiraConfig(target_modules=["q_proj", "o_proj"], r=4, rank_pattern={"0.*q_proj": 2}))


@pytest.mark.parametrize("architecture", LINEAR_ONLY)
@pytest.mark.parametrize("form", ["lora", "vector", "constant"])
def test_glora(form: str, architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = GloraConfig(target_modules=targets(architecture), r=4, config_A_B=form)
    bypass = as_peft(tiny_base(architecture), tmp_path, config, randomize=quiet)
    assert kinds(bypass) - {Bias} == ({Dense} if form == "lora" else {OutputScale, LowRank})


@pytest.mark.parametrize("ab", ["lora", "vector", "none"])
@pytest.mark.parametrize("c", ["lora", "vector", "none"])
@pytest.mark.parametrize("de", ["vector", "constant", "none"])
def test_forms_of_glora(ab: str, c: str, de: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    if ab == c == de == "none":
        pytest.skip("nothing is trained")
    config = GloraConfig(
        target_modules=["q_proj", "v_proj", "down_proj", "gate_proj"], r=4, config_A_B=ab, config_C=c, config_D_E=de
    )
    as_peft(tiny_base("llama_biased"), tmp_path, config, randomize=quiet)


def test_trained_biases_beside_glora_are_refused(tiny_base: Any, oracle: ModuleType, tmp_path: Path) -> None:
    """GLoRA multiplies the base's bias: of a bias that was trained as well, only the product could be served."""
    config = GloraConfig(target_modules=["q_proj"], r=4, bias="all", config_D_E="vector")
    base = tiny_base("llama_biased")
    oracle.method_adapter(base.folder, tmp_path, config)
    with pytest.raises(UnsupportedAdapter, match="GLORA, which multiplies the base's"):
        compile_adapter(tmp_path, base.table, torch.float32, model=base.model)


HIRA = HiraConfig(target_modules=["q_proj"], r=4)
GLORA = GloraConfig(target_modules=["q_proj"], r=4)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (HIRA, {"r": 0}, "r must be an integer of at least 1"),
        (HIRA, {"r": 5}, "hira_A has the shape"),
        (HIRA, {"target_modules": ["q_proj", "norm"]}, "neither linear layers nor embeddings"),
        (GLORA, {"config_A_B": "matrix"}, "config_A_B must be one of lora, vector, constant, none"),
        (GLORA, {"config_A_B": "vector"}, "missing: .*glora_A.X"),
        (GLORA, {"config_C": "constant"}, "config_C must be one of"),
        (GLORA, {"r": 3}, "glora_A.Xd has the shape"),
        (GLORA, {"config_A_B": "none"}, "does not put on this base|trains nothing"),
    ],
)
def test_refusals(config: Any, fields: dict[str, Any], message: str, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    edit_config(tmp_path, **fields)
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize("config", [HIRA, GLORA])
def test_deltas_that_are_too_large_are_refused_before_they_are_made(
    config: Any, llama: Any, oracle: Any, tmp_path: Path
) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    options: dict[str, Any] = {"max_rank": 4, "max_dense_delta": 1 << 14}
    with pytest.raises(AdapterError, match=r"would take 32768 bytes.*max-dense-delta is 16384"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model, **options)


def test_what_takes_the_place_of_an_untrained_part_must_be_zeros(llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, GLORA, randomize=quiet)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.model.layers.0.self_attn.q_proj.glora_C.zeros"] = torch.ones(64, 1)
    save_file(tensors, path)
    with pytest.raises(AdapterError, match=r"glora_C\.zeros holds other numbers than zeros"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
