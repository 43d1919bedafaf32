"""RandLoRA against PEFT, its bases saved or drawn again, and what of it is refused."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import RandLoraConfig
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import SharedBases

TARGETS = {"llama": ["q_proj", "k_proj", "down_proj"], "qwen2": ["k_proj", "o_proj", "up_proj"], "gpt2": ["c_attn"]}


@pytest.mark.parametrize("architecture", TARGETS)
@pytest.mark.parametrize(
    "fields",
    [
        {"r": 8},
        {"r": 7, "save_projection": False, "projection_prng_key": 5, "randlora_alpha": 9},
        {"r": 8, "randlora_alpha": 64, "sparse": True, "save_projection": False},
        {"r": 100, "very_sparse": True, "save_projection": False},
    ],
    ids=["saved", "drawn", "sparse", "very sparse"],
)
def test_as_peft(
    fields: dict[str, Any], architecture: str, tiny_base: Callable[[str], Any], as_peft: Any, tmp_path: Path
) -> None:
    transposed = {"fan_in_fan_out": True} if architecture == "gpt2" else {}
    with pytest.warns(UserWarning, match="save_projection") if "save_projection" in fields else nullcontext():
        config = RandLoraConfig(target_modules=TARGETS[architecture], **transposed, **fields)
    bypass = as_peft(tiny_base(architecture), tmp_path, config)
    primitives = [p for ps in bypass.sites.values() for p in ps]
    assert {type(p) for p in primitives} == {SharedBases}
    assert len({id(p.b) for p in primitives}) == 1


def written(llama: Any, oracle: ModuleType, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors and the configuration of one on two modules."""
    config = RandLoraConfig(target_modules=["0.self_attn.q_proj", "1.mlp.down_proj"], r=16)
    oracle.method_adapter(llama.folder, folder, config)
    raw = json.loads((folder / "adapter_config.json").read_text())
    return load_file(folder / "adapter_model.safetensors"), raw


def compiled(llama: Any, folder: Path, tensors: dict[str, torch.Tensor], raw: dict[str, Any], **options: Any) -> Any:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(raw))
    return compile_adapter(folder, llama.table, torch.float32, **options).bypass


def test_bases_may_be_there_once_but_not_differ(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    tensors, raw = written(llama, oracle, tmp_path)
    whole = compiled(llama, tmp_path, tensors, raw)
    copies = [key for key in tensors if "randlora_A" in key or "randlora_B" in key]
    assert len(copies) == 6
    for left in ("base_model.randlora_", "base_model.model.model.layers.1.mlp.down_proj.randlora_"):
        fewer = {key: t for key, t in tensors.items() if key not in copies or key.startswith(left)}
        once = compiled(llama, tmp_path, fewer, raw)
        for name, (primitive,) in whole.sites.items():
            (other,) = once.sites[name]
            assert all(torch.equal(tensor, other.tensors()[field]) for field, tensor in primitive.tensors().items())
    with pytest.raises(AdapterError, match="is not what the other tensors say"):
        compiled(llama, tmp_path, {**tensors, copies[0]: tensors[copies[0]] + 1}, raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 7}, "has the shape"),
        ({"r": 513}, "rank 513 is over"),
        ({"projection_prng_key": -1, "save_projection": False}, "projection_prng_key must be an integer"),
        ({"save_projection": False}, "does not put on this base"),
        ({"target_modules": ["nowhere"]}, "nowhere"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    tensors, raw = written(llama, oracle, tmp_path)
    with pytest.raises(AdapterError, match=message):
        compiled(llama, tmp_path, tensors, {**raw, **fields})


@pytest.mark.parametrize("suffix", ["lambda", "gamma", "A", "B"])
def test_every_tensor_is_wanted_whole_and_finite(suffix: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    tensors, raw = written(llama, oracle, tmp_path)
    keys = [key for key in tensors if key.endswith(f"randlora_{suffix}")]
    with pytest.raises(AdapterError, match=f"missing: .*randlora_{suffix}"):
        compiled(llama, tmp_path, {key: t for key, t in tensors.items() if key not in keys}, raw)
    with pytest.raises(AdapterError, match="has the shape"):
        compiled(llama, tmp_path, tensors | {key: tensors[key][1:] for key in keys}, raw)
    with pytest.raises(AdapterError, match="NaN or infinity"):
        compiled(llama, tmp_path, tensors | {key: tensors[key] * torch.nan for key in keys}, raw)


def test_bases_that_are_too_large_are_refused_before_they_are_drawn(
    llama: Any, oracle: ModuleType, tmp_path: Path
) -> None:
    tensors, raw = written(llama, oracle, tmp_path)
    with pytest.raises(AdapterError, match=r"would take \d+ bytes.*max-dense-delta is 1000"):
        compiled(llama, tmp_path, tensors, {**raw, "save_projection": False}, max_dense_delta=1000)
