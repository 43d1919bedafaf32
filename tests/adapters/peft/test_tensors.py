"""A checkpoint's tensors as trainers leave them: other types, other names, and some that PEFT has no use for."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.compile import CompiledAdapter, compile_adapter

IDS = [5, 17, 42, 99, 7]
LAYER = "base_model.model.model.layers.0"
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(llama: Any, checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return checkpoint(llama, tmp_path, r=4, target_modules=["q_proj", "down_proj"])


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = folder / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)


def add(folder: Path, *names: str) -> None:
    edit(folder, lambda tensors: {**tensors, **{name: torch.ones(3) for name in names}})


def compiled(folder: Path, base: Any) -> CompiledAdapter:
    return compile_adapter(folder, base.table, torch.float32, model=base.model)


def is_as_peft_s(oracle: ModuleType, base: Any, folder: Path) -> bool:
    got = oracle.naive_logits(oracle.plain_model(base.folder), compiled(folder, base).bypass, IDS)
    return torch.allclose(got, oracle.peft_logits(base.folder, folder, IDS), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.float64, *FLOAT8])
def test_types_that_peft_casts(dtype: torch.dtype, folder: Path, llama: Any, oracle: ModuleType) -> None:
    edit(folder, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    assert is_as_peft_s(oracle, llama, folder)


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (float("nan"), torch.float64, "holds NaN or infinity"),
        (float("inf"), torch.float64, "holds NaN or infinity"),
        (1e300, torch.float64, "is too large for float32"),
        (float("nan"), torch.float8_e4m3fn, "holds NaN or infinity"),
        (float("inf"), torch.float8_e5m2, "holds NaN or infinity"),
    ],
)
def test_numbers_that_are_none(value: float, dtype: torch.dtype, message: str, folder: Path, llama: Any) -> None:
    key = f"{LAYER}.self_attn.q_proj.lora_A.weight"
    edit(folder, lambda tensors: {**tensors, key: torch.full((4, 64), value, dtype=torch.float64).to(dtype)})
    with pytest.raises(InvalidAdapter, match=f"^{key} {message}"):
        compiled(folder, llama)


IGNORED = [
    "v_head.summary.weight",
    "base_model.model.v_head.summary.bias",
    f"{LAYER}.self_attn.rotary_emb.inv_freq",
    f"{LAYER}.self_attn.q_proj.alpha",
]


def test_tensors_that_peft_ignores(folder: Path, llama: Any, oracle: ModuleType) -> None:
    num_tensors = compiled(folder, llama).facts.consumed
    add(folder, *IGNORED)
    edit(folder, lambda tensors: {**tensors, IGNORED[-1]: torch.tensor(16)})  # a number, of whatever type
    assert is_as_peft_s(oracle, llama, folder)
    facts = compiled(folder, llama).facts
    assert facts.consumed == num_tensors
    (note,) = facts.notes
    assert all(name in note for name in IGNORED)


@pytest.mark.parametrize("name", [f"{LAYER}.self_attn.q_proj.lora_C.weight", "v_heads.weight", "alpha", "inv_freq"])
def test_other_tensors_are_refused(name: str, folder: Path, llama: Any) -> None:
    add(folder, *IGNORED, name)
    with pytest.raises(InvalidAdapter, match=f"does? not put on this base: {name}$"):
        compiled(folder, llama)


def test_fields_that_peft_ignores_are_noted(folder: Path, llama: Any, oracle: ModuleType) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_newest": True, "unsloth_fixed": "yes"}))
    assert is_as_peft_s(oracle, llama, folder)
    assert compiled(folder, llama).facts.notes[0].endswith("ignored: use_newest, unsloth_fixed")
