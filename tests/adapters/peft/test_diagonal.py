"""IA3, BEFT and LN tuning against PEFT, and what of them is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import BeftConfig, IA3Config, LNTuningConfig
from safetensors.torch import load_file, save_file

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Bias, InputScale, OutputScale, Replacement

LINEARS = {"phi3": (["qkv_proj", "down_proj"], "down_proj"), "gpt2": (["c_attn", "mlp.c_proj"], "mlp.c_proj")}
NORMS = {"gpt2": ["ln_1", "ln_f"], "gemma2": ["pre_feedforward_layernorm", "norm"]}
AsPeft = Callable[..., Bypass]


def linears(architecture: str) -> tuple[list[str], str]:
    return LINEARS.get(architecture, (["q_proj", "v_proj", "down_proj"], "down_proj"))


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3", "gpt2"])
def test_ia3(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    modules, feedforward = linears(architecture)
    config = IA3Config(target_modules=modules, feedforward_modules=[feedforward], fan_in_fan_out=architecture == "gpt2")
    bypass = as_peft(tiny_base(architecture), tmp_path, config)
    for name, primitives in bypass.sites.items():
        assert [type(p) for p in primitives] == [InputScale if name.endswith(feedforward) else OutputScale]


@pytest.mark.parametrize("feedforward", [[], ["proj"], r".*\.(q|down)_proj", ["lm_head", "o_proj"]])
def test_ia3_finds_feedforward_modules_as_peft_does(
    feedforward: list[str] | str, llama: Any, as_peft: AsPeft, tmp_path: Path
) -> None:
    config = IA3Config(target_modules=r".*(q|o|down)_proj|lm_head", feedforward_modules=feedforward)
    as_peft(llama, tmp_path, config)


def test_ia3_without_the_field_goes_by_shapes(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    wanted = as_peft(llama, tmp_path, IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["q_proj"]))
    edit_config(tmp_path, feedforward_modules=None)
    found = compile_adapter(tmp_path, llama.table, torch.float32).bypass
    assert {name: type(p) for name, (p,) in found.sites.items()} == {
        name: type(p) for name, (p,) in wanted.sites.items()
    }


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_beft(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, BeftConfig(target_modules=linears(architecture)[0]))
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {Bias}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "phi3", "gpt2"])
def test_ln_tuning(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    names = NORMS.get(architecture, ["input_layernorm", "post_attention_layernorm", "norm"])
    bypass = as_peft(tiny_base(architecture), tmp_path, LNTuningConfig(target_modules=names))
    (first, *_) = (p for ps in bypass.sites.values() for p in ps)
    assert isinstance(first, Replacement)
    assert (first.bias is not None) == (architecture == "gpt2")


def test_ln_tuning_of_linear_layers(tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(tiny_base("llama_biased"), tmp_path, LNTuningConfig(target_modules=["v_proj", "input_layernorm"]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feedforward_modules": ["q_proj"]}, r"q_proj\.ia3_l has the shape \(64, 1\).*feedforward module"),
        ({"feedforward_modules": []}, r"down_proj\.ia3_l.*not among the feedforward_modules"),
        ({"feedforward_modules": 3}, "feedforward_modules must be a string or a list"),
        ({"feedforward_modules": "("}, "feedforward_modules is not a valid regular expression"),
        ({"target_modules": ["q_proj", "down_proj", "k_proj"]}, r"missing: .*k_proj\.ia3_l"),
        ({"target_modules": ["q_proj"]}, r"does not put on this base: .*down_proj\.ia3_l"),
        ({"target_modules": ["q_proj", "down_proj", "norm"]}, "neither linear layers nor embeddings"),
    ],
)
def test_refusals_of_ia3(fields: dict[str, Any], message: str, llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(llama, tmp_path, IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]))
    edit_config(tmp_path, **fields)
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32)


def test_numbers_that_are_none_are_refused(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(llama, tmp_path, BeftConfig(target_modules=["q_proj"]))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: tensor * float("nan") for key, tensor in tensors.items()}, path)
    with pytest.raises(AdapterError, match=r"beft_bias holds NaN"):
        compile_adapter(tmp_path, llama.table, torch.float32)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
