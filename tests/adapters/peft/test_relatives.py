"""Low-rank relatives of LoRA against PEFT's logits, in their variants, and what they refuse."""

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

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Dense, Kronecker, LowRank, SharedLowRank

AsPeft = Callable[..., Bypass]
LINEARS = ["q_proj", "v_proj", "o_proj", "down_proj", "up_proj"]


def loud(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + torch.randn(parameter.shape, generator=generator)


def quiet(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return parameter + 0.1 * torch.randn(parameter.shape, generator=generator)


CONFIGS: dict[str, tuple[Callable[[], peft.PeftConfig], dict[str, Any]]] = {
    "adalora": (lambda: peft.AdaLoraConfig(target_modules=LINEARS, init_r=5, target_r=3, total_step=10), {}),
    "delora": (lambda: peft.DeloraConfig(target_modules=LINEARS, r=4, rank_pattern={"q_proj": 2}), {}),
    "gralora of 4 blocks": (lambda: peft.GraloraConfig(target_modules=LINEARS, r=8, alpha=16, gralora_k=4), {}),
    "gralora with a plain pair": (lambda: peft.GraloraConfig(target_modules=LINEARS, r=8, alpha=16, hybrid_r=3), {}),
    "loha by patterns": (
        lambda: peft.LoHaConfig(
            target_modules=LINEARS, r=3, alpha=5, rank_pattern={"v_proj": 2}, alpha_pattern={"v_proj": 1}
        ),
        {},
    ),
    "loha, dense where smaller": (lambda: peft.LoHaConfig(target_modules=LINEARS, r=9, alpha=5), {}),
    "lokr of whole factors": (lambda: peft.LoKrConfig(target_modules=LINEARS, r=64, alpha=64), {}),
    "lokr, thin where smaller": (
        lambda: peft.LoKrConfig(
            target_modules=["q_proj", "o_proj"], r=1, alpha=2, decompose_both=True, decompose_factor=2
        ),
        {"randomize": loud},
    ),
    "lokr of products": (
        lambda: peft.LoKrConfig(target_modules=LINEARS, r=2, alpha=4, decompose_both=True, decompose_factor=8),
        {},
    ),
    "vera drawn again": (
        lambda: peft.VeraConfig(target_modules=LINEARS, r=16, save_projection=False, projection_prng_key=5),
        {"randomize": loud},
    ),
    "pvera drawn again": (
        lambda: peft.PveraConfig(target_modules=LINEARS, r=16, save_projection=False, projection_prng_key=5),
        {"randomize": loud},
    ),
    "vblora of 3": (
        lambda: peft.VBLoRAConfig(target_modules=LINEARS, r=4, num_vectors=20, vector_length=16, topk=3),
        {"randomize": loud},
    ),
    "vblora of saved weights": (
        lambda: peft.VBLoRAConfig(
            target_modules=LINEARS, r=4, num_vectors=20, vector_length=16, save_only_topk_weights=True
        ),
        {"randomize": loud},
    ),
    "hra": (lambda: peft.HRAConfig(target_modules=LINEARS, r=5), {}),
    "hra, orthogonal": (lambda: peft.HRAConfig(target_modules=LINEARS, r=5, apply_GS=True), {}),
    "deft by qr": (
        lambda: peft.DeftConfig(target_modules=LINEARS, r=4, alpha=8, decomposition_method="qr"),
        {"randomize": loud},
    ),
    "deft without injection": (lambda: peft.DeftConfig(target_modules=LINEARS, r=4, para=True), {"randomize": loud}),
    "peanut of depth 2": (
        lambda: peft.PeanutConfig(target_modules=LINEARS, r=4, depth=2, act_fn="silu", scaling=0.7),
        {"randomize": lambda *given: 0.7 * loud(*given)},  # louder, the base amplifies what last digits differ by
    ),
    "osf": (lambda: peft.OSFConfig(target_modules=["q_proj", "down_proj"], effective_rank=60), {}),
    "osf, nothing left of v_proj": (lambda: peft.OSFConfig(target_modules=["q_proj", "v_proj"], effective_rank=60), {}),
    "osf, dense where smaller": (lambda: peft.OSFConfig(target_modules=LINEARS), {}),
    "miss, uneven": (lambda: peft.MissConfig(target_modules=LINEARS, r=7), {}),
    "miss, mini": (lambda: peft.MissConfig(target_modules=LINEARS, r=8, mini_r=4, init_weights="mini"), {}),
    "miss, bat": (
        lambda: peft.MissConfig(target_modules=LINEARS, r=8, init_weights="bat"),
        {"randomize": quiet},
    ),
}


@pytest.mark.parametrize("architecture", ["llama_biased", "qwen2"])
@pytest.mark.parametrize("name", CONFIGS)
def test_as_peft_computes_it(name: str, architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    make, options = CONFIGS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of projections that are not saved
        config = make()
    bypass = as_peft(tiny_base(architecture), tmp_path, config, **options)
    kinds = {type(primitive) for primitives in bypass.sites.values() for primitive in primitives}
    assert kinds <= {LowRank, SharedLowRank, Dense, Kronecker}
    assert (Dense in kinds) == name.endswith(("dense where smaller", "bat"))
    assert (Kronecker in kinds) == name.startswith("lokr of")


@pytest.mark.parametrize("task", [0, 2])
def test_tasks_of_poly(task: int, llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = peft.PolyConfig(task_type="CAUSAL_LM", target_modules=LINEARS, r=4, n_tasks=3, n_skills=2, n_splits=2)
    assert as_peft(llama, tmp_path, config, task=task).num_tasks == 3


def test_a_task_that_poly_does_not_have(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, peft.PolyConfig(target_modules=["q_proj"], r=2, n_tasks=3))
    with pytest.raises(InvalidAdapter, match="task_id must be below 3"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model, task=3)


def test_directions_that_adalora_kept(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    """As PEFT saves an adapter whose ranks were allocated: fewer rows, and a mask of all."""
    config = peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=10, task_type="CAUSAL_LM")
    oracle.method_adapter(llama.folder, tmp_path, config)
    masks = {"layers.0": [True, False, True, False], "layers.1": [False, True, True, True]}
    _keep(tmp_path, masks)
    bypass = compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model).bypass
    assert [bypass.sites[f"model.{layer}.self_attn.q_proj"][0].a.shape[0] for layer in masks] == [2, 3]
    ids = [5, 17, 42, 99, 7, 250, 31, 8]
    wanted = oracle.peft_logits(llama.folder, tmp_path, ids)
    got = oracle.naive_logits(oracle.plain_model(llama.folder), bypass, ids)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


def _keep(folder: Path, masks: dict[str, list[bool]]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    for layer, mask in masks.items():
        stem, rows = f"base_model.model.model.{layer}.self_attn.q_proj", torch.tensor(mask)
        for name in ("lora_A", "lora_E"):
            tensors[f"{stem}.{name}"] = tensors[f"{stem}.{name}"][rows]
        tensors[f"{stem}.lora_B"] = tensors[f"{stem}.lora_B"][:, rows].contiguous()
    save_file(tensors, folder / "adapter_model.safetensors")
    _edit(folder, rank_pattern={f"model.{layer}.self_attn.q_proj.lora_E": mask for layer, mask in masks.items()})


def test_bone_is_an_older_name_of_miss(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    for form in (True, "bat"):
        folder = tmp_path / str(form)
        config = peft.MissConfig(target_modules=["q_proj"], r=8, init_weights=form)
        oracle.method_adapter(llama.folder, folder, config)
        wanted = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
        file = folder / "adapter_model.safetensors"
        save_file({name.replace("miss_", "bone_"): tensor for name, tensor in load_file(file).items()}, file)
        _edit(folder, peft_type="BONE", mini_r=None, miss_dropout=None)
        got = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
        for name, (primitive,) in wanted.sites.items():
            for field, tensor in primitive.tensors().items():
                assert torch.equal(got.sites[name][0].tensors()[field], tensor)


HRA = peft.HRAConfig(target_modules=["q_proj"], r=4)
REFUSED: dict[str, tuple[peft.PeftConfig, dict[str, Any], type[AdapterError], str]] = {
    "rank": (HRA, {"r": 5}, InvalidAdapter, "hra_u has the shape"),
    "block": (peft.GraloraConfig(target_modules=["q_proj"], r=8), {"gralora_k": 3}, InvalidAdapter, "no multiple"),
    "sampling": (
        peft.PveraConfig(target_modules=["q_proj"], r=8),
        {"sample_at_inference": True},
        UnsupportedAdapter,
        "answers would be random",
    ),
    "vectors": (
        peft.VBLoRAConfig(target_modules=["q_proj"], r=2, num_vectors=8, vector_length=8),
        {"topk": 9},
        InvalidAdapter,
        "topk is 9",
    ),
    "activation": (peft.PeanutConfig(target_modules=["q_proj"], r=2), {"act_fn": "snake"}, InvalidAdapter, "act_fn"),
    "mask of no module": (
        peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=9),
        {"rank_pattern": {"nowhere.lora_E": [True, False, True, False]}},
        InvalidAdapter,
        "must name a targeted module",
    ),
    "mask of another length": (
        peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=9),
        {"rank_pattern": {"model.layers.0.self_attn.q_proj.lora_E": [True] * 5}},
        InvalidAdapter,
        "have init_r=4 booleans",
    ),
    "splits": (peft.PolyConfig(target_modules=["q_proj"], r=2), {"n_splits": 3}, InvalidAdapter, "into 3 splits"),
    "a number beyond floats": (
        peft.LoHaConfig(target_modules=["q_proj"], r=2),
        {"r": 10**400},
        InvalidAdapter,
        "r must be an integer of at most",
    ),
    "an R that is not used": (
        peft.DeftConfig(target_modules=["q_proj"], r=2),
        {"para": True},
        InvalidAdapter,
        "deft_R",
    ),
    "form": (peft.MissConfig(target_modules=["q_proj"], r=8), {"init_weights": "other"}, InvalidAdapter, "bat or mini"),
    "mask": (
        peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=9),
        {"rank_pattern": {"q_proj": 3}},
        InvalidAdapter,
        "a list of booleans",
    ),
    "variant": (
        peft.AdaLoraConfig(target_modules=["q_proj"], init_r=4, target_r=2, total_step=9),
        {"use_dora": True},
        UnsupportedAdapter,
        "AdaLoRA does not know it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    config, fields, kind, message = REFUSED[name]
    oracle.method_adapter(llama.folder, tmp_path, config)
    _edit(tmp_path, **fields)
    with pytest.raises(kind, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize("side", [2, 60000])
def test_factors_of_lokr_are_not_multiplied_before_their_shapes_are_checked(
    side: int, llama: Any, oracle: ModuleType, tmp_path: Path
) -> None:
    """A small file must not ask for a matrix of any size."""
    oracle.method_adapter(llama.folder, tmp_path, peft.LoKrConfig(target_modules=["q_proj"], r=2))
    thin = {"lokr_w2_a": torch.zeros(side, 2), "lokr_w2_b": torch.zeros(2, side)}
    _replace(tmp_path, thin)
    with pytest.raises(InvalidAdapter, match=r"the factors at .* make"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


def test_factors_of_lokr_are_matrices(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, peft.LoKrConfig(target_modules=["q_proj"], r=64))
    _replace(tmp_path, {"lokr_w1": torch.tensor(1.0)})
    with pytest.raises(InvalidAdapter, match="a matrix is wanted"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


def test_places_of_vectors_are_integers(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    config = peft.VBLoRAConfig(
        target_modules=["q_proj"], r=2, num_vectors=8, vector_length=64, save_only_topk_weights=True
    )
    oracle.method_adapter(llama.folder, tmp_path, config)
    _replace(tmp_path, {"vblora_logits_A_topk_indices": torch.full((2, 1, 2), 0.5)})
    with pytest.raises(InvalidAdapter, match="holds no integers"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize(
    "name", ["gelu_10", "gelu_fast", "gelu_accurate", "quick_gelu", "relu2", "prelu", "laplace", "sqrtsoftplus"]
)
def test_activations_of_peanut(name: str, llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    as_peft(llama, tmp_path, peft.PeanutConfig(target_modules=["q_proj"], r=4, depth=1, act_fn=name))


def test_an_osf_adapter_without_directions(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, peft.OSFConfig(target_modules=["q_proj"], effective_rank=64))
    with pytest.raises(InvalidAdapter, match="the adapter does nothing"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


def _replace(folder: Path, ends: dict[str, torch.Tensor]) -> None:
    """Replaces tensors by the ends of their names."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for key in tensors:
        tensors[key] = ends.get(key.rpartition(".")[2], tensors[key]).clone()
    save_file(tensors, file)


def test_ranks_over_the_limit(llama: Any, oracle: ModuleType, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, HRA)
    with pytest.raises(AdapterTooLarge, match="rank 4 is over the server's limit of 3"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model, max_rank=3)


def _edit(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
