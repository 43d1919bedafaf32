"""SHiRA and Super-Tuning against PEFT, and what of them is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import ShiraConfig, SupertuningConfig
from safetensors.torch import load_file, save_file

from peftserve.adapters.bypass import Bypass
from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Dense, LowRank, Sparse

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")  # in PEFT
AsPeft = Callable[..., Bypass]
TARGETS = {"phi3": ["qkv_proj", "down_proj"]}


def targets(architecture: str) -> list[str]:
    return TARGETS.get(architecture, ["q_proj", "v_proj", "down_proj"])


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_shira(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, ShiraConfig(target_modules=targets(architecture), r=3))
    for (primitive,) in bypass.sites.values():
        assert isinstance(primitive, Sparse)
        assert (primitive.starts.diff() >= 0).all()
        assert (primitive.starts[0], primitive.starts[-1]) == (0, len(primitive.values))


def test_entries_that_are_many_are_dense(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    bypass = as_peft(llama, tmp_path, ShiraConfig(target_modules=["k_proj", "v_proj"], r=10))
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {Dense}
    with pytest.raises(AdapterError, match="max-dense-delta"):
        compile_adapter(tmp_path, llama.table, torch.float32, max_dense_delta=100)


def test_indices_saved_as_floats(llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    wanted = as_peft(llama, tmp_path, ShiraConfig(target_modules=["q_proj"], r=2))
    edit_tensors(tmp_path, "shira_indices", torch.Tensor.float)
    found = compile_adapter(tmp_path, llama.table, torch.float32).bypass
    for name, (primitive,) in wanted.sites.items():
        for field, tensor in primitive.tensors().items():
            torch.testing.assert_close(found.sites[name][0].tensors()[field], tensor)


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "qwen2", "gemma2", "phi3"])
def test_supertuning(architecture: str, tiny_base: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = SupertuningConfig(target_modules=targets(architecture), sparsity=0.9)
    bypass = as_peft(tiny_base(architecture), tmp_path, config)
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {Sparse}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4},
        {"r": 4, "lora_alpha": 3.5},
        {"select_top": False},
        {"select_top": False, "save_precomputed_indices": False},
        {"save_precomputed_indices": False, "r": 2},
        {"sparsity": 0.0},
    ],
)
@pytest.mark.filterwarnings("ignore:save_precomputed_indices=False")
def test_variants_of_supertuning(options: dict[str, Any], llama: Any, as_peft: AsPeft, tmp_path: Path) -> None:
    config = SupertuningConfig(target_modules=["q_proj", "down_proj"], **{"sparsity": 0.9, **options})
    bypass = as_peft(llama, tmp_path, config)
    kinds = {type(p) for ps in bypass.sites.values() for p in ps}
    assert kinds == {Dense if options.get("sparsity") == 0.0 else Sparse} | ({LowRank} if "r" in options else set())


@pytest.mark.filterwarnings("ignore:save_precomputed_indices=False")
def test_places_that_are_ambiguous_are_refused(llama: Any, oracle: Any, tmp_path: Path) -> None:
    config = SupertuningConfig(target_modules=["q_proj"], sparsity=0.9, save_precomputed_indices=False)
    oracle.method_adapter(llama.folder, tmp_path, config)
    model = oracle.plain_model(llama.folder)
    weight = model.get_submodule("model.layers.1.self_attn.q_proj").weight
    weight[3, 4], weight[5, 6] = 9.0, -9.0
    with pytest.raises(AdapterError, match=r"layers\.1\..*ambiguous; save it with save_precomputed_indices=True"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=model)


SHIRA = ShiraConfig(target_modules=["q_proj"], r=2)
SUPER = SupertuningConfig(target_modules=["q_proj"], sparsity=0.9)
SUPRA = SupertuningConfig(target_modules=["q_proj"], sparsity=0.9, r=2)


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (SHIRA, {"r": 0}, "r must be an integer of at least 1"),
        (SHIRA, {"r": 3}, r"shira_weight has the shape \(256,\); r=3 at .* takes: \(384,\)"),
        (SHIRA, {"target_modules": ["k_proj"]}, "missing: .*k_proj.shira_weight"),
        (SHIRA, {"target_modules": ["embed_tokens"]}, "neither linear layers"),
        (SUPER, {"sparsity": 1.0}, "sparsity must be at least 0 and under 1"),
        (SUPER, {"sparsity": 0.99999}, "leaves no entry"),
        (SUPER, {"sparsity": 0.5}, "supertuning_values has the shape"),
        (SUPER, {"lora_alpha": 4}, "lora_alpha is set, but r is not"),
        (SUPER, {"save_precomputed_indices": False}, "supertuning_indices"),
        (SUPER, {"r": 2}, "missing: .*supertuning_lora_A"),
        (SUPRA, {"r": None, "lora_alpha": None}, "does not put on this base: .*supertuning_lora_A"),
        (SUPRA, {"r": 3}, "supertuning_lora_A.weight has the shape"),
        (SUPRA, {"r": 10**9}, "over the server's limit"),
    ],
)
def test_refusals(config: Any, fields: dict[str, Any], message: str, llama: Any, oracle: Any, tmp_path: Path) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    with pytest.raises(AdapterError, match=message):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize(
    "edit",
    [lambda places: places - 100, lambda places: places + 100_000, lambda places: places.float() / 3 + float("nan")],
)
@pytest.mark.parametrize("config", [SHIRA, SUPER])
def test_places_outside_of_the_weight_are_refused(
    config: Any, edit: Callable[[torch.Tensor], torch.Tensor], llama: Any, oracle: Any, tmp_path: Path
) -> None:
    oracle.method_adapter(llama.folder, tmp_path, config)
    edit_tensors(tmp_path, "_indices", edit)
    with pytest.raises(AdapterError, match="holds places outside of the weight"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


def edit_tensors(folder: Path, end: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({key: edit(tensor) if key.endswith(end) else tensor for key, tensor in tensors.items()}, path)
