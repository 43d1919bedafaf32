"""The adapter answers what the tuned checkpoint answers by itself: by PEFT's logits, and by the engine's tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from peftserve.server.checkpoint.difference.extract import Extracted, ExtractRequest, extract
from peftserve.server.checkpoint.difference.forms import Limits
from peftserve.server.checkpoint.errors import MergeRefused
from peftserve.server.offline import LLM
from peftserve.server.wire.messages import SamplingParams

PROMPTS = [[5, 9, 17, 33, 7, 8, 40, 41], [60, 61, 62, 100, 101, 13, 14]]
TOKENS = 12

Change = Callable[[str, torch.Tensor, torch.Generator], None]


def loaded(folder: Path, **options: Any) -> PreTrainedModel:
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()  # type: ignore[no-any-return]


def tuned(base: Path, out: Path, change: Change, seed: int = 1, **options: Any) -> Path:
    """Write a copy of a base whose parameters a function has changed in place."""
    model, generator = loaded(base, **options), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            change(name, parameter, generator)
    model.save_pretrained(out, max_shard_size="50KB")
    return out


def noise(parameter: torch.Tensor, generator: torch.Generator) -> None:
    parameter += (0.2 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def last_layer(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if ".1." in name:
        noise(parameter, generator)


def everything(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    noise(parameter, generator)


def single_entries(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if "_proj.weight" in name or name == "model.norm.weight":
        flat = parameter.view(-1)
        flat[torch.randperm(len(flat), generator=generator)[: len(flat) // 50 + 1]] += 0.5


def low_rank(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Merge factors of other ranks in other modules, and change biases too."""
    if parameter.dim() == 2 and (".mlp." in name or ".self_attn." in name or ".attn." in name):
        rank = 1 + len(name) % 3
        a = torch.randn(rank, parameter.shape[1], generator=generator)
        parameter += 0.1 * torch.randn(parameter.shape[0], rank, generator=generator) @ a
    elif name.endswith("bias"):
        noise(parameter, generator)


def biases(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if name.endswith(("_proj.bias", "c_attn.bias", "c_fc.bias")):
        noise(parameter, generator)


def some_tokens(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if name.endswith(("embed_tokens.weight", "wte.weight")):
        parameter[[5, 9, 60]] += 0.4 * torch.randn(3, parameter.shape[1], generator=generator)


def tokens_and_a_norm(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    some_tokens(name, parameter, generator)
    if name == "model.norm.weight":
        noise(parameter, generator)


def embedding_and_some_positions(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if name.endswith("wpe.weight"):
        parameter[[2, 9]] += 0.4 * torch.randn(2, parameter.shape[1], generator=generator)
    elif name.endswith("wte.weight"):
        noise(parameter, generator)


def embedding(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    if name.endswith(("embed_tokens.weight", "wte.weight", "lm_head.weight")):
        noise(parameter, generator)


CASES: dict[str, tuple[str, Change, Limits, str, set[str]]] = {
    "a layer of Llama": ("llama", last_layer, Limits(), "LN_TUNING", {"whole"}),
    "a layer of GPT-2": ("gpt2", last_layer, Limits(), "LN_TUNING", {"whole"}),
    "all of Llama": ("llama", everything, Limits(), "LN_TUNING", {"whole"}),
    "all of GPT-2, tied": ("gpt2", everything, Limits(), "LN_TUNING", {"whole"}),
    "single entries": ("llama", single_entries, Limits(), "SHIRA", {"sparse", "whole"}),
    "factors": ("llama", low_rank, Limits(max_error=2e-6), "LORA", {"low rank"}),
    "factors and biases": ("qwen2", low_rank, Limits(max_error=2e-6), "LORA", {"low rank"}),
    "factors of Conv1D": ("gpt2", low_rank, Limits(max_error=2e-6), "LORA", {"low rank", "whole"}),
    "biases": ("qwen2", biases, Limits(), "LORA", {"low rank"}),
    "all of Gemma 3, with norms of heads": ("gemma3", everything, Limits(), "LN_TUNING", {"whole"}),
    "tokens, untied": ("llama", some_tokens, Limits(), "TRAINABLE_TOKENS", {"rows"}),
    "tokens, tied": ("gpt2", some_tokens, Limits(), "TRAINABLE_TOKENS", {"rows"}),
    "tokens of Gemma, which scales them": ("gemma3", some_tokens, Limits(), "TRAINABLE_TOKENS", {"rows"}),
    "tokens and a norm": ("llama", tokens_and_a_norm, Limits(), "LORA", {"rows", "whole"}),
    "a tied embedding": ("gemma3", embedding, Limits(), "LORA", {"whole"}),
    "a tied embedding and positions": ("gpt2", embedding_and_some_positions, Limits(), "LORA", {"rows", "whole"}),
    "an embedding and a head": ("llama", embedding, Limits(), "LORA", {"whole"}),
}


def extracted(base: Path, other: Path, out: Path, limits: Limits | None = None) -> Extracted:
    return extract(ExtractRequest(str(base), str(other), base.name, out, limits or Limits()))


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0]
    return found


def generated(model: PreTrainedModel) -> list[list[int]]:
    made = [
        model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)[0]  # type: ignore[operator]
        for prompt in PROMPTS
    ]
    return [tokens[len(prompt) :].tolist() for tokens, prompt in zip(made, PROMPTS, strict=True)]


def served(base: Path, adapter: Path) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    with LLM(base, adapters={"tuned": adapter}, device="cpu", dtype="float32") as llm:
        return [list(answer.token_ids) for answer in llm.generate(PROMPTS, adapter="tuned", sampling=sampling)]


FEW = ("a layer of Llama", "all of GPT-2, tied", "single entries", "factors and biases", "tokens and a norm")


@pytest.mark.parametrize(
    "case", [case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_adapter_is_the_tuned_checkpoint(case: str, oracle: ModuleType, tmp_path: Path) -> None:
    architecture, change, limits, method, forms = CASES[case]
    base = oracle.tiny_model(architecture, 3, tmp_path / "base")
    other = tuned(base, tmp_path / "tuned", change)
    found = extracted(base, other, tmp_path / "adapter", limits)
    assert (found.method, {one.form.partition(",")[0] for one in found.findings}) == (method, forms)
    assert max(one.error for one in found.findings) <= (limits.max_error or 0.0)
    wanted, own = loaded(other), loaded(base)
    assert (logits(wanted) - logits(own)).abs().max() > 0.01, "nothing was tuned: this test could not fail"
    peft = oracle.peft_logits(base, tmp_path / "adapter", PROMPTS[0])
    torch.testing.assert_close(peft, logits(wanted), rtol=1e-4, atol=1e-4)
    assert served(base, tmp_path / "adapter") == generated(wanted)


@pytest.mark.slow
def test_the_text_of_a_multimodal_model(oracle: ModuleType, tmp_path: Path) -> None:
    """A tower that was tuned too is left out: no text passes it."""
    base = oracle.wrapped_model("gemma3", 3, tmp_path / "base")
    other = tuned(base, tmp_path / "tuned", last_layer)
    found = extracted(base, other, tmp_path / "adapter")
    assert all(name.startswith("model.vision_tower.") for name in found.unread)
    assert found.unread
    assert {one.module.partition(".layers.")[0] for one in found.findings} == {"model.language_model"}
    assert served(base, tmp_path / "adapter") == generated(loaded(other)) != generated(loaded(base))


def test_what_is_not_changed_is_not_written(oracle: ModuleType, tmp_path: Path) -> None:
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    found = extracted(base, tuned(base, tmp_path / "tuned", last_layer), tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    own = load_file(base / "model.safetensors")
    assert len(tensors) == len(found.findings) == sum(".1." in name for name in own)
    assert all(".layers.1." in key for key in tensors)
    assert found.num_bytes < sum(t.nbytes for name, t in own.items() if ".1." in name) + 4096


def test_sixteen_bits_stay_what_they_are(oracle: ModuleType, tmp_path: Path) -> None:
    """Saved modules have the bytes of the tuned checkpoint, which is in shards; base and tuned are of two types."""
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    half = tuned(base, tmp_path / "half", everything, dtype=torch.bfloat16)
    assert (half / "model.safetensors.index.json").is_file()
    found = extracted(base, half, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    wanted = {name: tensor for file in half.glob("*.safetensors") for name, tensor in load_file(file).items()}
    got = {
        key.removeprefix("base_model.model.").replace("ln_tuning_layers.", ""): tensor
        for key, tensor in tensors.items()
    }
    assert all(torch.equal(got[name], tensor) and got[name].dtype == tensor.dtype for name, tensor in wanted.items())
    assert {one.error for one in found.findings} == {0.0}


def test_a_rank_without_an_error_is_the_best_of_that_rank(oracle: ModuleType, tmp_path: Path) -> None:
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    other = tuned(base, tmp_path / "tuned", last_layer)
    found = extracted(base, other, tmp_path / "adapter", Limits(rank=4))
    linears = [one for one in found.findings if one.form == "low rank, 4"]
    assert len(linears) == 7
    assert all(0.01 < one.error < 1.0 for one in linears)
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (4, 4, {})


def test_more_tokens_come_with_their_words(oracle: ModuleType, tmp_path: Path) -> None:
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    model = loaded(base)
    model.resize_token_embeddings(model.config.vocab_size + 4, mean_resizing=False)  # type: ignore[operator]
    with torch.no_grad():
        model.get_input_embeddings().weight[-4:] = torch.randn(4, 64)  # type: ignore[index]
    model.save_pretrained(tmp_path / "tuned")
    tokenizer = oracle.tiny_tokenizer()
    tokenizer.add_tokens(["<a>", "<b>", "<c>", "<d>"])
    tokenizer.save_pretrained(tmp_path / "tuned")
    found = extracted(base, tmp_path / "tuned", tmp_path / "adapter")
    assert {one.form for one in found.findings} == {"whole"}
    assert "<a>" in (tmp_path / "adapter/tokenizer.json").read_text()
    assert served(base, tmp_path / "adapter") == generated(model.eval())


def test_ends_of_texts_come_along(oracle: ModuleType, tmp_path: Path) -> None:
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    other = tuned(base, tmp_path / "tuned", last_layer)
    (other / "generation_config.json").unlink()
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "eos_token_id": 7}))
    extracted(base, other, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/generation_config.json").read_text())["eos_token_id"] == 7
    assert not (tmp_path / "adapter/tokenizer.json").exists()


def renamed(folder: Path, old: str, new: str | None) -> Path:
    """Give a tensor of a checkpoint in one file another name, or none."""
    tensors = load_file(folder / "model.safetensors")
    tensor = tensors.pop(old)
    save_file(tensors if new is None else {**tensors, new: tensor}, folder / "model.safetensors", {"format": "pt"})
    return folder


def reconfigured(folder: Path, **fields: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    return folder


REFUSED: dict[str, tuple[Callable[[ModuleType, Path], Path], str]] = {
    "another architecture": (
        lambda oracle, out: oracle.tiny_model("qwen2", 3, out),
        "BASE is a llama and TUNED a qwen2: no adapter makes one the other",
    ),
    "another width": (
        lambda oracle, out: oracle.tiny_model("llama", 3, out, hidden_size=32),
        r"the configurations differ in .*hidden_size \(64, 32\)",
    ),
    "another rotation": (
        lambda oracle, out: reconfigured(oracle.tiny_model("llama", 4, out), rms_norm_eps=0.5),
        r"the configurations differ in rms_norm_eps",
    ),
    "a tensor that is not there": (
        lambda oracle, out: renamed(oracle.tiny_model("llama", 4, out), "model.norm.weight", None),
        "lacks 1 of the .* tensors of a LlamaForCausalLM: model.norm.weight",
    ),
    "a tensor that nobody knows": (
        lambda oracle, out: renamed(oracle.tiny_model("llama", 4, out), "model.norm.weight", "model.no.weight"),
        "lacks 1 of the|tensors that its architecture does not know",
    ),
    "the same": (
        lambda oracle, out: oracle.tiny_model("llama", 3, out),
        "the two checkpoints are the same",
    ),
    "nothing": (lambda oracle, out: out, "there is no folder"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_nothing(case: str, oracle: ModuleType, tmp_path: Path) -> None:
    make, message = REFUSED[case]
    base = oracle.tiny_model("llama", 3, tmp_path / "base")
    other = make(oracle, tmp_path / "tuned")
    with pytest.raises(MergeRefused, match=message):
        extracted(base, other, tmp_path / "adapter")
    assert not [path for path in tmp_path.iterdir() if "adapter" in path.name]


def test_experts_are_nothing_that_an_adapter_brings_whole(oracle: ModuleType, tmp_path: Path) -> None:
    base = oracle.tiny_model("mixtral", 3, tmp_path / "base")
    other = tuned(base, tmp_path / "tuned", everything)
    with pytest.raises(MergeRefused, match=r"no linear layer, embedding or norm .*, model\.layers\.0\.mlp\.experts"):
        extracted(base, other, tmp_path / "adapter")
