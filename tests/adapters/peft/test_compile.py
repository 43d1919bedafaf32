"""Checkpoints that PEFT writes, compiled, against what PEFT itself does with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter

Tensors = dict[str, torch.Tensor]
Deltas = Callable[[Any, Any], Tensors]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def same(deltas_of_peft: Deltas, deltas_of_bypass: Deltas) -> Callable[[Any, Path], None]:
    """Compiles an adapter and compares its deltas with PEFT's, module by module."""

    def check(base: Any, folder: Path) -> None:
        compiled = compile_adapter(folder, base.table, torch.float32, model=base.model)
        wanted, got = deltas_of_peft(base, folder), deltas_of_bypass(base, compiled.bypass)
        assert got.keys() == wanted.keys()
        assert list(got) == [name for name in base.table.sites if name in got]
        for name, delta in wanted.items():
            assert delta.abs().max() > 0
            torch.testing.assert_close(got[name], delta, rtol=2e-5, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
        assert compiled.facts.sites == len(wanted)
        assert compiled.facts.rank == max(p.rank for ps in compiled.bypass.sites.values() for p in ps)

    return check


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3", "phi3", "gpt2", "opt"])
def test_as_peft_computes_it(
    architecture: str,
    tiny_base: Callable[[str], Any],
    oracle: ModuleType,
    tmp_path: Path,
    same: Callable[[Any, Path], None],
) -> None:
    base = tiny_base(architecture)
    for folder in oracle.varied_adapters(base.folder, tmp_path):
        same(base, folder)


FORMS: dict[str, dict[str, Any]] = {
    "full names": {"target_modules": ["model.layers.1.mlp.up_proj", "model.layers.0.self_attn.q_proj"]},
    "partial names": {"target_modules": ["self_attn.q_proj", "1.mlp.up_proj"]},
    "full name beside layers": {
        "target_modules": ["model.layers.1.mlp.up_proj", "q_proj"],
        "layers_to_transform": [0],
    },
    "one layer": {"target_modules": ["q_proj", "lm_head"], "layers_to_transform": 1},
    "layers by patterns": {
        "target_modules": ["q_proj"],
        "layers_to_transform": [1],
        "layers_pattern": ["blocks", "lay.rs"],
    },
    "no layers": {"target_modules": ["q_proj"], "layers_to_transform": []},
    "a regex that excludes": {"target_modules": "all-linear", "exclude_modules": r".*layers\.0\..*"},
    "a regex of everything below": {"target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|down_proj).*?)|lm_head"},
    "all-linear in capitals": {"target_modules": "ALL-LINEAR"},
    "the first pattern wins": {
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"[qk]_proj": 3, "q_proj": 5, "proj": 7},
        "alpha_pattern": {"model.layers.1.self_attn.q_proj": 1, r"^model\.layers\.0\..*": 2, "up_proj": 0.5},
        "use_rslora": True,
    },
    "head only": {"target_modules": ["lm_head"]},
    "embedding only": {"target_modules": ["embed_tokens"]},
    "initialised in another way": {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal", "r": 4},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_configuration(
    form: str, llama: Any, tmp_path: Path, checkpoint: Callable[..., Path], same: Callable[[Any, Path], None]
) -> None:
    same(llama, checkpoint(llama, tmp_path, **FORMS[form]))


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head"], r".*q_proj|embed_tokens", ["q_proj"]])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma3"])
def test_tied_weights(
    architecture: str,
    tie: bool,
    targets: Any,
    tiny_base: Callable[[str], Any],
    tmp_path: Path,
    checkpoint: Callable[..., Path],
    same: Callable[[Any, Path], None],
) -> None:
    """An adapter on one of a tied pair is on that one alone, unless the configuration ties the adapters too."""
    base = tiny_base(architecture)
    same(base, checkpoint(base, tmp_path, target_modules=targets, r=4, ensure_weight_tying=tie))


def test_tied_factors_may_be_saved_once_and_must_agree(
    tiny_base: Callable[[str], Any], tmp_path: Path, checkpoint: Callable[..., Path], same: Callable[[Any, Path], None]
) -> None:
    base = tiny_base("qwen2")
    folder = checkpoint(base, tmp_path, target_modules=["embed_tokens"], r=4, ensure_weight_tying=True)
    assert "base_model.model.lm_head.lora_A.weight" in load_file(folder / "adapter_model.safetensors")
    edit(folder, lambda t: t["base_model.model.lm_head.lora_A.weight"].mul_(2))
    with pytest.raises(InvalidAdapter, match="is not the transpose of"):
        compile_adapter(folder, base.table, torch.float32, model=base.model)
    edit(folder, lambda t: [t.pop(key) for key in list(t) if "lm_head" in key])
    bypass = compile_adapter(folder, base.table, torch.float32, model=base.model).bypass
    assert bypass.sites.keys() == {"model.embed_tokens", "lm_head"}


def edit(folder: Path, change: Callable[[Tensors], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.fixture(scope="module")
def saved(llama: Any, tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Path:
    return checkpoint(llama, tmp_path_factory.mktemp("saved"), target_modules=["q_proj", "v_proj"], r=4)


@pytest.fixture(scope="module")
def saved_embedding(llama: Any, tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("saved_embedding")
    return checkpoint(llama, folder, target_modules=["embed_tokens", "lm_head"], r=4)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


@pytest.fixture
def embedding_folder(saved_embedding: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_embedding, tmp_path / "copy"))


@pytest.fixture
def refused(llama: Any) -> Callable[..., None]:
    def check(folder: Path, kind: type[AdapterError], message: str, **options: Any) -> None:
        options = {"dtype": torch.float32, "model": llama.model, **options}
        with pytest.raises(kind, match=message) as error:
            compile_adapter(folder, llama.table, **options)
        assert type(error.value) is kind
        assert len(error.value.message) < 1000

    return check


Refused = Callable[..., None]


@pytest.mark.parametrize(
    "rename",
    [
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.replace(".weight", ".my-adapter.weight").removeprefix("base_model.model."),
    ],
)
def test_other_forms_of_keys(folder: Path, llama: Any, rename: Callable[[str], str]) -> None:
    wanted = compile_adapter(folder, llama.table, torch.float32).bypass
    edit(folder, lambda t: [t.update({rename(key): t.pop(key)}) for key in list(t)])
    got = compile_adapter(folder, llama.table, torch.float32).bypass
    assert got.sites.keys() == wanted.sites.keys()
    for name, (primitive,) in wanted.sites.items():
        (other,) = got.sites[name]
        assert torch.equal(primitive.a, other.a)
        assert torch.equal(primitive.b, other.b)


def test_embedding_keys_with_an_adapter_s_name(embedding_folder: Path, llama: Any) -> None:
    edit(embedding_folder, lambda t: [t.update({f"{k}.x": t.pop(k)}) for k in list(t) if "embedding" in k])
    edit(embedding_folder, lambda t: [t.update({k.replace(".w", ".x.w"): t.pop(k)}) for k in list(t) if "lora_A" in k])
    edit(embedding_folder, lambda t: [t.update({k.replace(".w", ".x.w"): t.pop(k)}) for k in list(t) if "lora_B" in k])
    compiled = compile_adapter(embedding_folder, llama.table, torch.float32, model=llama.model)
    assert compiled.bypass.sites.keys() == {"model.embed_tokens", "lm_head"}
    assert compiled.facts.consumed == 6


def test_facts(folder: Path, llama: Any) -> None:
    facts = compile_adapter(folder, llama.table, torch.bfloat16).facts
    numbers = 2 * 4 * (64 + 64 + 64 + 32)
    assert (facts.method, facts.rank, facts.num_bytes, facts.sites, facts.consumed) == ("LORA", 4, 2 * numbers, 4, 8)
    assert facts.primitives == {"low_rank": 4}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_compiled_type(folder: Path, llama: Any, dtype: torch.dtype) -> None:
    exact = compile_adapter(folder, llama.table, torch.float32).bypass
    for name, (primitive,) in compile_adapter(folder, llama.table, dtype).bypass.sites.items():
        (other,) = exact.sites[name]
        assert torch.equal(primitive.a, other.a.to(dtype))
        assert torch.equal(primitive.b, other.b.to(dtype))
        assert primitive.a.is_contiguous()


def test_tensors_that_are_missing_are_named(folder: Path, refused: Refused) -> None:
    edit(folder, lambda t: t.pop(f"{Q}.lora_B.weight"))
    refused(folder, InvalidAdapter, rf"wants tensors that are missing: {Q}.lora_B.weight$")
    edit(folder, lambda t: [t.pop(key) for key in list(t)])
    refused(folder, InvalidAdapter, r"missing: .*lora_A.*, \.\.\. \(8 in all\)")


def test_modules_that_are_configured_but_not_there_are_named(folder: Path, refused: Refused) -> None:
    edit_config(folder, target_modules=["q_proj", "v_proj", "o_proj"])
    refused(folder, InvalidAdapter, r"missing: .*layers\.0\.self_attn\.o_proj\.lora_A\.weight")


@pytest.mark.parametrize(
    "key",
    [
        f"{Q}.lora_magnitude_vector",
        f"{Q}.lora_C.weight",
        f"{Q}.lora_A.bias",
        "base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight",
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.weight",
        "base_model.model.model.norm.weight",
        f"{Q}.lora_embedding_A",
        "x",
    ],
)
def test_tensors_that_nobody_asked_for_are_named(folder: Path, refused: Refused, key: str) -> None:
    edit(folder, lambda t: t.update({key: torch.zeros(4, 64)}))
    refused(folder, InvalidAdapter, rf"does not put on this base: {key}$")


def test_a_checkpoint_of_another_base(folder: Path, refused: Refused) -> None:
    edit(folder, lambda t: [t.update({k.replace("layers.", "h."): t.pop(k)}) for k in list(t)])
    refused(folder, InvalidAdapter, r"does not put on this base: .*\.h\.0\..*, \.\.\. \(8 in all\)")


def test_several_adapters_in_one_file(folder: Path, refused: Refused) -> None:
    edit(folder, lambda t: t.update({f"{Q}.lora_A.x.weight": t.pop(f"{Q}.lora_A.weight")}))
    refused(folder, InvalidAdapter, "several adapters: None, x")
    edit(folder, lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(4, 64)}))
    refused(folder, InvalidAdapter, "are the same tensor")


@pytest.mark.parametrize("shape", [(4, 63), (5, 64), (64, 4), (4, 64, 1), (256,), ()])
def test_shapes_are_checked_against_the_base(folder: Path, refused: Refused, shape: tuple[int, ...]) -> None:
    edit(folder, lambda t: t.update({f"{Q}.lora_A.weight": torch.zeros(shape)}))
    refused(folder, InvalidAdapter, rf"{Q}\.lora_A\.weight has the shape .*; rank 4 at .*q_proj.* takes: \(4, 64\)")


def test_ranks_are_checked_against_the_configuration(folder: Path, refused: Refused) -> None:
    edit_config(folder, rank_pattern={"layers.0.self_attn.q_proj": 3})
    refused(folder, InvalidAdapter, r"has the shape \(4, 64\); rank 3 at model\.layers\.0\.self_attn\.q_proj")
    edit_config(folder, rank_pattern={}, r=1000)
    refused(folder, AdapterTooLarge, "rank 1000 is over the server's limit of 512")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_what_is_not_finite_is_named(folder: Path, refused: Refused, value: float, factor: str) -> None:
    edit(folder, lambda t: t[f"{Q}.{factor}.weight"][3].fill_(value))
    refused(folder, InvalidAdapter, f"{Q}.{factor}.weight holds NaN or infinity")


def test_what_overflows_the_served_type_is_named(folder: Path, llama: Any, refused: Refused) -> None:
    edit(folder, lambda t: t[f"{Q}.lora_B.weight"].fill_(60000.0))
    edit_config(folder, lora_alpha=8)
    refused(folder, InvalidAdapter, f"{Q}.lora_B.weight is too large for float16", dtype=torch.float16)
    compile_adapter(folder, llama.table, torch.bfloat16)


def test_a_module_that_is_no_site_is_named(folder: Path, refused: Refused) -> None:
    edit_config(folder, target_modules=["q_proj", "mlp"])
    refused(folder, InvalidAdapter, "neither linear layers nor embeddings: model.layers.0.mlp, model.layers.1.mlp")
    edit_config(folder, target_modules=".*")
    refused(folder, InvalidAdapter, r"neither linear layers nor embeddings: model, .* in all\)")
    edit_config(folder, target_modules=["query_key_value"])
    refused(folder, InvalidAdapter, "target_modules query_key_value matches no module of this base")


def test_copies_of_the_embedding(embedding_folder: Path, llama: Any, refused: Refused) -> None:
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    assert key in load_file(embedding_folder / "adapter_model.safetensors")
    refused(embedding_folder, UnsupportedAdapter, "is not supported yet: there is no weight", model=None)
    edit(embedding_folder, lambda t: t.update({key: t[key].bfloat16()}))
    compile_adapter(embedding_folder, llama.table, torch.float32, model=llama.model)
    edit(embedding_folder, lambda t: t.pop(key))
    compile_adapter(embedding_folder, llama.table, torch.float32, model=llama.model)


def test_the_config_may_not_be_huge(folder: Path, refused: Refused) -> None:
    edit_config(folder, base_model_name_or_path="x" * (1 << 20))
    refused(folder, AdapterTooLarge, "adapter_config.json is over")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_are_gone(folder: Path, refused: Refused, name: str) -> None:
    (folder / name).unlink()
    refused(folder, InvalidAdapter, "^the adapter's files cannot be read: No such file or directory$")
