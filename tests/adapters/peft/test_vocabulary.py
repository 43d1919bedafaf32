"""Adapters that were trained after the base's vocabulary was resized, against the model that they were trained on."""

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch

from peftserve.adapters.errors import InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter

LORA = {"r": 4, "target_modules": ["q_proj"]}
BOTH = {"r": 4, "target_modules": ["q_proj", "embed_tokens", "lm_head"]}
EMBEDDING = "base_model.model.model.embed_tokens"


@torch.no_grad()
def trained(oracle: ModuleType, base: Any, folder: Path, size: int, config: Any, **save: Any) -> Any:
    """Resize the base, train at random and save. Returns PEFT's model."""
    model = oracle.plain_model(base.folder)
    model.resize_token_embeddings(size, mean_resizing=False)
    generator = torch.Generator().manual_seed(size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = peft.get_peft_model(model, config)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(oracle.shaken(name, parameter, generator))
        wrapped.save_pretrained(folder, **save)
    return wrapped.eval()


def same_as_trained(oracle: ModuleType, base: Any, wrapped: Any, folder: Path, size: int) -> Any:
    bypass = compile_adapter(folder, base.table, torch.float32, model=base.model).bypass
    ids = [5, size - 1, 42, 3, size - 2, 17]
    with torch.inference_mode():
        wanted = wrapped(torch.tensor([ids])).logits[0, -len(ids) :]  # without those of virtual tokens
    got = oracle.naive_logits(oracle.plain_model(base.folder), bypass, ids)
    assert got.shape[-1] == max(300, size)
    torch.testing.assert_close(got[:, :size], wanted, rtol=1e-4, atol=2e-4)
    return bypass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [271, 307])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.LoraConfig(**LORA),
        lambda: peft.LoraConfig(**BOTH),
        lambda: peft.LoraConfig(**BOTH, use_dora=True),
        lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens", "lm_head"]),
        lambda: peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        lambda: peft.LoraConfig(**LORA, trainable_token_indices=[3, 270]),
        lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
        lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    ],
    ids=["beside", "on both", "dora", "saved", "saved and tied", "tokens", "ia3", "prompt", "prefix"],
)
def test_a_resized_vocabulary(
    config: Callable[[], Any],
    architecture: str,
    size: int,
    tiny_base: Callable[[str], Any],
    tmp_path: Path,
    oracle: ModuleType,
) -> None:
    base = tiny_base(architecture)
    wrapped = trained(oracle, base, tmp_path, size, config(), save_embedding_layers=True)
    bypass = same_as_trained(oracle, base, wrapped, tmp_path, size)
    assert (bypass.vocabulary, bypass.predicted) == (size, size)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [271, 307])
def test_trained_biases_of_a_resized_head(
    size: int, tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType
) -> None:
    base, config = tiny_base("qwen2"), peft.LoraConfig(r=4, target_modules=["lm_head"], lora_bias=True)
    wrapped = trained(oracle, base, tmp_path, size, config, save_embedding_layers=True)
    same_as_trained(oracle, base, wrapped, tmp_path, size)


def test_fewer_tokens_without_a_copy_of_their_rows(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """The first rows of the base are those rows."""
    wrapped = trained(oracle, llama, tmp_path, 280, peft.LoraConfig(**BOTH), save_embedding_layers=False)
    assert same_as_trained(oracle, llama, wrapped, tmp_path, 280).vocabulary == 280


def test_rows_of_the_base_s_own_are_not_kept_twice(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    wrapped = trained(oracle, llama, tmp_path, 280, peft.LoraConfig(**LORA), save_embedding_layers=True)
    bypass = same_as_trained(oracle, llama, wrapped, tmp_path, 280)
    assert {p.kind for primitives in bypass.sites.values() for p in primitives} == {"low_rank"}


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
@pytest.mark.parametrize(
    "config",
    [
        lambda: peft.TrainableTokensConfig(token_indices=[301, 7, 300, 302]),
        lambda: peft.LoraConfig(**LORA, trainable_token_indices=[7, 300, 302, 301]),
    ],
    ids=["alone", "beside"],
)
def test_new_tokens_of_which_only_the_rows_are_saved(
    config: Callable[[], Any], architecture: str, tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType
) -> None:
    base = tiny_base(architecture)
    wrapped = trained(oracle, base, tmp_path, 303, config(), save_embedding_layers=False)
    assert same_as_trained(oracle, base, wrapped, tmp_path, 303).predicted == 303


@pytest.mark.filterwarnings("ignore")
def test_new_tokens_that_a_head_of_its_own_does_not_say(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """PEFT saves no row of the head there: after the next resize they are random."""
    config = peft.TrainableTokensConfig(token_indices=[300, 301])
    trained(oracle, llama, tmp_path, 302, config)
    bypass = compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model).bypass
    assert (bypass.vocabulary, bypass.predicted) == (302, 0)
    assert "lm_head" not in bypass.sites


def test_new_rows_that_are_missing_are_named(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    trained(oracle, llama, tmp_path, 307, peft.LoraConfig(**BOTH), save_embedding_layers=False)
    with pytest.raises(InvalidAdapter, match=r"307 tokens, 7 more .* model.embed_tokens it lacks the rows of 300, 301"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)


@pytest.mark.filterwarnings("ignore")
def test_a_method_that_is_no_sum_of_rows_is_refused_on_a_resized_head(
    llama: Any, tmp_path: Path, oracle: ModuleType
) -> None:
    config = peft.LoKrConfig(r=2, target_modules=["lm_head"])
    trained(oracle, llama, tmp_path, 280, config, save_embedding_layers=True)
    with pytest.raises(UnsupportedAdapter, match=r"kronecker at lm_head .* vocabulary is not as large as the base's"):
        compile_adapter(tmp_path, llama.table, torch.float32, model=llama.model)
