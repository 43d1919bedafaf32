"""The base is read whole and bare, or a sentence says what is wrong with its checkpoint."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from peftserve.server.engine.model.checkpoint import read_config, read_model
from peftserve.server.engine.model.errors import UnservableModel

Make = Callable[..., Path]


@pytest.fixture
def tiny(oracle: ModuleType, tmp_path: Path) -> Make:
    def make(architecture: str = "llama", **overrides: Any) -> Path:
        folder: Path = oracle.tiny_model(architecture, 0, tmp_path / architecture, **overrides)
        return folder

    return make


def read(folder: Path) -> Any:
    read_config(str(folder), False)
    return read_model(str(folder), torch.float32, False)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


# All of the base


@pytest.mark.parametrize(
    ("architecture", "dropped", "named"),
    [
        ("llama", "model.layers.1.mlp.up_proj.weight", ""),
        ("llama", "lm_head.weight", ""),
        ("llama", "model.norm.weight", ""),
        ("llama_biased", "model.layers.0.self_attn.q_proj.bias", ""),
        ("gpt2", "transformer.wpe.weight", ""),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
        ("qwen2", "model.embed_tokens.weight", "model.embed_tokens.weight, lm_head.weight"),
    ],
)
def test_tensors_that_are_missing_are_named(tiny: Make, architecture: str, dropped: str, named: str) -> None:
    folder = tiny(architecture)
    change(folder, lambda weights: weights.pop(dropped))
    number = 1 + named.count(",")
    wanted = rf"the checkpoint in {folder} lacks {number} of the \d+ tensors of a \w+: {named or dropped}\. Serve"
    with pytest.raises(UnservableModel, match=wanted):
        read(folder)


@pytest.mark.parametrize("dropped", ["w1", "w2"])
def test_one_expert_that_is_missing_is_no_other_one(tiny: Make, dropped: str) -> None:
    """Experts are stored one by one and computed stacked."""
    folder = tiny("mixtral")
    change(folder, lambda weights: weights.pop(f"model.layers.1.block_sparse_moe.experts.2.{dropped}.weight"))
    with pytest.raises(UnservableModel):
        read(folder)


def test_a_classifier_has_no_head_for_tokens(tiny: Make) -> None:
    folder = tiny()
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
    with pytest.raises(
        UnservableModel, match=r"lacks 1 of the \d+ tensors .*: lm_head.weight, and has others .*: score"
    ):
        read(folder)


def test_another_prefix_is_told(tiny: Make) -> None:
    folder = tiny()

    def rename(weights: dict[str, torch.Tensor]) -> None:
        for key in list(weights):
            weights[f"student.net.{key}"] = weights.pop(key)

    change(folder, rename)
    with pytest.raises(
        UnservableModel, match=r"lacks 21 of the 21 tensors .*\(21 in all\), and has others .*student.net"
    ):
        read(folder)


def test_other_shapes_are_told(tiny: Make) -> None:
    folder = tiny()
    change(folder, lambda weights: weights.update({"model.norm.weight": torch.ones(65)}))
    shapes = r"model.norm.weight \(65,\), where its configuration says \(64,\)"
    with pytest.raises(UnservableModel, match=f"other shapes than its configuration says: {shapes}"):
        read(folder)


@pytest.mark.parametrize("size", [0, 5, 4000])
def test_a_damaged_file_is_told(tiny: Make, size: int) -> None:
    folder = tiny()
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(UnservableModel, match=r"cannot be read: |finds no model in "):
        read(folder)


def test_a_shard_that_is_missing_is_told(tiny: Make) -> None:
    folder = tiny()
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="100KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(UnservableModel, match=str(folder)):
        read(folder)


def test_what_is_tied_or_computed_is_not_missing(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    for architecture in ("qwen2", "gemma2", "gpt2", "opt", "mixtral"):
        read(tiny(architecture))
    assert not caplog.records


def test_tensors_that_the_model_does_not_have_are_said(tiny: Make, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny()
    change(folder, lambda weights: weights.update({f"mtp.{i}.weight": torch.ones(2) for i in range(7)}))
    with caplog.at_level(logging.WARNING, "peftserve"):
        read(folder)
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("peftserve")]
    assert "that a LlamaForCausalLM does not have are left out: mtp.0.weight" in warning
    assert "(7 in all)" in warning


# Nothing but the base


@pytest.fixture
def with_adapter(tiny: Make, oracle: ModuleType, tmp_path: Path) -> Path:
    """As trainers leave it: base and adapter in one folder."""
    folder = tiny()
    adapter = oracle.random_adapter(folder, tmp_path / "adapter", 1)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / file, folder / file)
    return folder


def test_an_adapter_beside_the_base_stays_out_of_it(with_adapter: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "peftserve"):
        model = read(with_adapter)
    assert not [name for name in model.state_dict() if "lora" in name]
    assert not model._hf_peft_config_loaded
    for key, tensor in load_file(with_adapter / "model.safetensors").items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=0)
    (warning,) = [r.getMessage() for r in caplog.records if r.name.startswith("peftserve")]
    assert f"There is an adapter in {with_adapter}, too" in warning
    assert "--adapter NAME=FOLDER" in warning


def test_an_adapter_in_the_base_is_refused(with_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should transformers find it in another way."""
    monkeypatch.setattr("peftserve.server.engine.model.checkpoint._NOWHERE", {})
    with pytest.raises(UnservableModel, match="transformers has put an adapter that lies in "):
        read(with_adapter)


@pytest.mark.parametrize("left", ["adapter alone", "configuration too"])
def test_an_adapter_alone_is_no_base(with_adapter: Path, left: str) -> None:
    """Nor is the base loaded that it names, under the adapter's name."""
    (with_adapter / "model.safetensors").unlink()
    if left == "adapter alone":
        (with_adapter / "config.json").unlink()
    file = with_adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "org/base"}))
    wanted = rf"{with_adapter} holds an adapter and no model.*peftserve serve org/base --adapter NAME={with_adapter}"
    with pytest.raises(UnservableModel, match=wanted):
        read(with_adapter)


def test_an_adapter_whose_configuration_is_broken_is_no_base(with_adapter: Path) -> None:
    (with_adapter / "config.json").unlink()
    (with_adapter / "adapter_config.json").write_text("[")
    with pytest.raises(UnservableModel, match=r"holds an adapter and no model.*peftserve serve BASE --adapter"):
        read(with_adapter)


def test_a_folder_without_a_model_is_said_in_transformers_words(tmp_path: Path) -> None:
    with pytest.raises(UnservableModel, match=f"transformers finds no model in {tmp_path}: "):
        read(tmp_path)


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_codes_without_a_word_on_how_to_read_them_are_no_numbers(tiny: Make, kind: torch.dtype) -> None:
    """What transformers would cast, and then multiply by."""
    folder, key = tiny("llama"), "model.layers.1.mlp.up_proj.weight"

    def quantise(weights: dict[str, torch.Tensor]) -> None:
        weights[f"{key}_scale"] = weights[key].abs().amax(1, keepdim=True) / 127
        weights[key] = (weights[key] / weights[f"{key}_scale"]).to(kind)

    change(folder, quantise)
    with pytest.raises(
        UnservableModel, match=f"holds scales of quantised weights .{key}_scale.*no quantization_config"
    ):
        read(folder)
