"""Virtual tokens and side attention, as PEFT writes and serves them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterError, AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Bias

AsPeft = Callable[..., Any]
TinyBases = Callable[[str], Any]
ARCHITECTURES = ["llama", "qwen2", "gemma2", "gemma3", "phi3", "gpt2", "opt"]
SOFT: dict[str, Callable[[], peft.PeftConfig]] = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "P_TUNING": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=16),
    "P_TUNING of an LSTM": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_hidden_size=16, encoder_reparameterization_type="LSTM"
    ),
    "CPT": lambda: peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[5, 9, 40], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
}


def multitask(**options: Any) -> peft.PeftConfig:
    return peft.MultitaskPromptTuningConfig(
        **{"task_type": "CAUSAL_LM", "num_virtual_tokens": 4, "num_tasks": 3, "num_ranks": 2, **options}
    )


def prefix(**options: Any) -> peft.PeftConfig:
    return peft.PrefixTuningConfig(**{"task_type": "CAUSAL_LM", "num_virtual_tokens": 5, **options})


def adaption(**options: Any) -> peft.PeftConfig:
    return peft.AdaptionPromptConfig(**{"task_type": "CAUSAL_LM", "adapter_len": 3, "adapter_layers": 2, **options})


def loud(_: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(parameter.shape, generator=generator)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prompt_tuning(architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, SOFT["PROMPT_TUNING"](), randomize=loud)
    assert bypass.prefix.length == 5
    assert bypass.exclusive == ("KV prefix",)


@pytest.mark.parametrize("method", ["P_TUNING", "P_TUNING of an LSTM", "CPT"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_soft_prompts(method: str, architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    as_peft(tiny_base(architecture), tmp_path, SOFT[method](), randomize=loud)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3"])
def test_prompts_longer_than_the_window(
    architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft
) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=40)
    bypass = as_peft(tiny_base(architecture), tmp_path, config, randomize=loud)
    assert all(len(keys) == len(values) == 40 for keys, values in bypass.prefix.layers.values())


@pytest.mark.parametrize("task", [0, 2])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_multitask(architecture: str, task: int, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    assert as_peft(tiny_base(architecture), tmp_path, multitask(), task=task, randomize=loud).num_tasks == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_prefix_tuning(architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, prefix(), randomize=loud)
    assert bypass.prefix.length == 5


def test_prefix_projection(tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    as_peft(tiny_base("gpt2"), tmp_path, prefix(prefix_projection=True, encoder_hidden_size=16), randomize=loud)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "opt"])
def test_cartridge(architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=6, num_frozen_tokens=2)
    as_peft(tiny_base(architecture), tmp_path, config, randomize=loud)


@pytest.mark.parametrize("architecture", ["llama", "llama_biased", "mistral"])
@pytest.mark.parametrize("layers", [1, 2])
def test_adaption_prompt(architecture: str, layers: int, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, adaption(adapter_layers=layers), randomize=loud)
    assert list(bypass.side_attention) == [0, 1][-layers:]
    biases = [p for primitives in bypass.sites.values() for p in primitives]
    assert len(biases) == (layers if architecture == "llama_biased" else 0)
    assert all(isinstance(p, Bias) for p in biases)


@pytest.mark.parametrize("make", [SOFT["PROMPT_TUNING"], SOFT["CPT"], multitask, prefix])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_copies_of_embedding_and_head_that_are_the_base_s(
    make: Any, architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft
) -> None:
    """PEFT wraps the base once for these methods: the names of its modules have one prefix less."""
    options = {"task": 0} if make is multitask else {}
    bypass = as_peft(tiny_base(architecture), tmp_path, make(), randomize=loud, save_embedding_layers=True, **options)
    assert not bypass.sites


@pytest.mark.parametrize(
    ("make", "fields", "error", "message"),
    [
        (SOFT["PROMPT_TUNING"], {"num_virtual_tokens": 6}, InvalidAdapter, r"has the shape \(5, 64\); 6 virtual"),
        (SOFT["PROMPT_TUNING"], {"num_virtual_tokens": None}, InvalidAdapter, "num_virtual_tokens is missing"),
        (SOFT["PROMPT_TUNING"], {"num_virtual_tokens": 0}, InvalidAdapter, "at least 1, not 0"),
        (SOFT["PROMPT_TUNING"], {"num_virtual_tokens": 10**12}, AdapterTooLarge, "has 256 positions"),
        (SOFT["PROMPT_TUNING"], {"token_dim": 128}, InvalidAdapter, "token_dim is 128, but this base has 64"),
        (SOFT["PROMPT_TUNING"], {"num_layers": 3}, InvalidAdapter, "num_layers is 3, but this base has 2 layers"),
        (SOFT["PROMPT_TUNING"], {"num_transformer_submodules": 2}, InvalidAdapter, "encoder-decoder"),
        (SOFT["PROMPT_TUNING"], {"modules_to_save": ["lm_head"]}, UnsupportedAdapter, "modules_to_save"),
        (SOFT["CPT"], {"cpt_token_ids": [1, 2]}, InvalidAdapter, "has 2 ids, but num_virtual_tokens is 3"),
        (multitask, {"num_tasks": 4}, InvalidAdapter, "4 tasks of rank 2 and 4 virtual tokens take"),
        (multitask, {"num_ranks": -1}, InvalidAdapter, "num_ranks must be an integer of at least 1"),
        (prefix, {"num_layers": 3}, InvalidAdapter, "num_layers is 3, but this base has 2 layers"),
        (prefix, {"num_attention_heads": 4}, InvalidAdapter, "num_attention_heads is 4, but this base has 2 kv heads"),
        (prefix, {"token_dim": 64}, InvalidAdapter, "token_dim is 64, but this base has 32"),
        (prefix, {"num_virtual_tokens": 4}, InvalidAdapter, r"has the shape \(5, 128\); 4 virtual tokens take"),
        (adaption, {"adapter_len": 4}, InvalidAdapter, r"an adapter_len of 4 takes on this base: \(1, 4, 64\)"),
        (adaption, {"adapter_layers": 3}, InvalidAdapter, "adapter_layers is 3, but this base has 2 layers"),
        (adaption, {"adapter_layers": 1}, InvalidAdapter, "does not put on this base"),
        (adaption, {"adapter_layers": 0}, InvalidAdapter, "at least 1, not 0"),
        (adaption, {"target_modules": "mlp"}, InvalidAdapter, "target_modules must be self_attn, not 'mlp'"),
    ],
)
def test_refusals(
    make: Any, fields: Any, error: type[AdapterError], message: str, llama: Any, tmp_path: Path, oracle: ModuleType
) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, make(), randomize=loud)
    edit_config(folder, **fields)
    with pytest.raises(error, match=message):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize("make", [SOFT["PROMPT_TUNING"], prefix, adaption])
def test_dtype_of_the_base(make: Any, llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """Prompts are read and kept in the base's dtype, and no tensor is left in inference mode."""
    folder = oracle.method_adapter(llama.folder, tmp_path, make(), randomize=loud)
    model = oracle.plain_model(llama.folder).bfloat16()
    bypass = compile_adapter(folder, llama.table, torch.bfloat16, model=model).bypass
    pairs = (
        bypass.prefix.layers.values() if bypass.prefix else [(s.keys, s.values) for s in bypass.side_attention.values()]
    )
    assert all(t.dtype is torch.bfloat16 and not t.is_inference() for pair in pairs for t in pair)


@pytest.mark.parametrize("make", [SOFT["PROMPT_TUNING"], prefix, adaption])
def test_without_the_model(make: Any, llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, make(), randomize=loud)
    with pytest.raises(UnsupportedAdapter, match="needs the base's model"):
        compile_adapter(folder, llama.table, torch.float32)


def test_a_task_out_of_range(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, multitask(), randomize=loud)
    with pytest.raises(InvalidAdapter, match="task_id 3 is not among this adapter's 3 tasks, 0 to 2"):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model, task=3)


@pytest.mark.parametrize("make", [SOFT["PROMPT_TUNING"], multitask, prefix, adaption])
def test_what_is_not_finite(make: Any, llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, make(), randomize=loud)
    edit(folder, lambda tensors: next(t for name, t in tensors.items() if "prompt" in name).fill_(float("nan")))
    with pytest.raises(InvalidAdapter, match="holds NaN or infinity"):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)


def test_adaption_prompt_on_another_base(llama: Any, tiny_base: TinyBases, tmp_path: Path, oracle: ModuleType) -> None:
    folder, gpt2 = oracle.method_adapter(llama.folder, tmp_path, adaption(), randomize=loud), tiny_base("gpt2")
    with pytest.raises(UnsupportedAdapter, match="a base of the type gpt2"):
        compile_adapter(folder, gpt2.table, torch.float32, model=gpt2.model)
