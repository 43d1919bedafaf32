"""Experts and a router as PEFT makes and saves them, as one adapter."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterError, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import RoutedLowRank

IDS = [5, 90, 17, 33, 41, 8, 250]


@pytest.fixture
def arrow(llama: Any, oracle: ModuleType, tmp_path: Path) -> Callable[..., Path]:
    """A router over four experts on q_proj and down_proj."""

    def make(**options: Any) -> Path:
        config = peft.LoraConfig(
            r=4, target_modules=["q_proj", "down_proj"], arrow_config=peft.ArrowConfig(rng_seed=1, **options)
        )
        folder: Path = oracle.method_adapter(llama.folder, tmp_path / "router", config)
        return folder

    return make


def edit(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_k": 2, "router_temperature": 0.1}, {"top_k": 4}, {"top_k": 2, "use_gks": True}]
)
def test_logits_are_those_of_peft(
    options: dict[str, Any], arrow: Callable[..., Path], llama: Any, oracle: ModuleType
) -> None:
    folder = arrow(**options)
    compiled = compile_adapter(folder, llama.table, torch.float32, model=llama.model)
    ours = oracle.naive_logits(llama.model, compiled.bypass, IDS)
    theirs = oracle.peft_logits(llama.folder, folder, IDS)
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - llama.model(torch.tensor([IDS])).logits[0]).abs().max() > 1e-2
    assert all(isinstance(p, RoutedLowRank) for ps in compiled.bypass.sites.values() for p in ps)
    assert compiled.facts.rank == 4
    parts = [folder, *folder.glob("task_*"), *folder.glob("gks_*")]
    assert compiled.facts.consumed == sum(len(load_file(part / "adapter_model.safetensors")) for part in parts)


def test_prototypes_are_near_the_directions_that_experts_enlarge_most(arrow: Callable[..., Path], llama: Any) -> None:
    (primitive,) = compile_adapter(arrow(top_k=1), llama.table, torch.float32, model=llama.model).bypass.sites[
        "model.layers.0.self_attn.q_proj"
    ]
    assert isinstance(primitive, RoutedLowRank)
    for a, b, prototype in zip(primitive.a, primitive.b, primitive.prototypes, strict=True):
        gain = (b.T @ (a @ prototype)).norm()
        assert gain > 0.85 * torch.linalg.matrix_norm(b.T @ a, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 5}, "top_k 5 of 4"),
        ({"task_adapter_names": None}, "top_k 2 of 0"),
        ({"router_temperature": 0}, "router_temperature"),
        ({"use_gks": True}, "use_gks"),
        ({"task_adapter_names": ["../elsewhere", "task_1"]}, "'../elsewhere'"),
        ({"task_adapter_names": ["a"] * 300}, "256"),
        ({"rng_seed": "x"}, "rng_seed"),
    ],
)
def test_a_router_that_says_what_cannot_be(
    fields: dict[str, Any], message: str, arrow: Callable[..., Path], llama: Any
) -> None:
    folder = arrow(top_k=2)
    file = folder / "adapter_config.json"
    edit(file, arrow_config={**json.loads(file.read_text())["arrow_config"], **fields})
    with pytest.raises(AdapterError) as refused:
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)
    assert message in refused.value.message


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"use_dora": True}, UnsupportedAdapter, "task_1 is not plain LoRA"),
        ({"use_rslora": True}, None, ""),
        ({"target_modules": ["q_proj"]}, InvalidAdapter, "task_1: tensors"),
        ({"r": 2}, InvalidAdapter, r"task_1: .*lora_A.*shape"),
        ({"modules_to_save": ["lm_head"]}, UnsupportedAdapter, "task_1"),
        ({"bias": "all"}, UnsupportedAdapter, "task_1"),
    ],
)
def test_experts_that_are_not_alike(
    fields: dict[str, Any], kind: Any, message: str, arrow: Callable[..., Path], llama: Any
) -> None:
    folder = arrow(top_k=2)
    edit(folder / "task_1" / "adapter_config.json", **fields)
    if kind is None:
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)
        return
    with pytest.raises(kind, match=message):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)


def test_experts_on_fewer_modules_or_of_another_rank(
    arrow: Callable[..., Path], llama: Any, oracle: ModuleType, tmp_path: Path
) -> None:
    folder = arrow(top_k=2)
    for number, (options, message) in enumerate(
        [({"r": 4, "target_modules": ["q_proj"]}, "other modules"), ({"r": 2}, "has rank 2 .* the router 4")]
    ):
        config = peft.LoraConfig(**{"target_modules": ["q_proj", "down_proj"], **options})
        shutil.rmtree(folder / "task_1")
        oracle.method_adapter(llama.folder, folder / "task_1", config, seed=number)
        with pytest.raises(InvalidAdapter, match=message):
            compile_adapter(folder, llama.table, torch.float32, model=llama.model)


def test_a_broken_expert_is_named(arrow: Callable[..., Path], llama: Any) -> None:
    file = arrow(top_k=2) / "task_2" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, file)
    with pytest.raises(InvalidAdapter, match=r"down_proj\.lora_A\.weight holds NaN"):
        compile_adapter(file.parents[1], llama.table, torch.float32, model=llama.model)
