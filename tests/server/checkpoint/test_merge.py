"""A merged checkpoint in plain transformers answers what the mixture answers when it is served."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.checkpoint.errors import MergeRefused
from peftserve.server.checkpoint.members import Chosen
from peftserve.server.checkpoint.merge import MergeRequest, merge
from peftserve.server.offline import LLM
from peftserve.server.wire.messages import SamplingParams

PROMPTS = [[5, 9, 17, 33, 7, 8, 40, 41], [60, 61, 62, 100, 101, 13, 14]]
TOKENS = 12


def merged(model: Path, out: Path, mixture: dict[Path, float], **options: Any) -> Path:
    chosen = [Chosen(folder.name, folder, weight) for folder, weight in mixture.items()]
    merge(MergeRequest(str(model), model.name, chosen, out, **options))
    return out


def loaded(folder: Path) -> PreTrainedModel:
    """Load in float32, as anybody would: every tensor must be known, and none be missing."""
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()  # type: ignore[no-any-return]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=torch.tensor(PROMPTS[:1])).logits
    return out


def generated(model: PreTrainedModel) -> list[list[int]]:
    made = [
        model.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None)[0]  # type: ignore[operator]
        for prompt in PROMPTS
    ]
    return [tokens[len(prompt) :].tolist() for tokens, prompt in zip(made, PROMPTS, strict=True)]


def served(model: Path, mixture: dict[Path, float]) -> list[list[int]]:
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
    adapters = {folder.name: folder for folder in mixture}
    with LLM(model, adapters=adapters, device="cpu", dtype="float32") as llm:
        weights = {folder.name: weight for folder, weight in mixture.items()}
        return [list(answer.token_ids) for answer in llm.generate(PROMPTS, adapter=weights, sampling=sampling)]


def configurations(oracle: ModuleType, model_type: str) -> dict[str, PeftConfig | None]:
    """LoRA on all linears, another method beside it, and what changes a tied embedding or the experts."""
    kind = oracle.kind_of(model_type)
    names = ("lora-rslora", "vera", "lora-embedding-and-head", "lora-experts")
    return {name: oracle.CATALOG[name].make(kind) for name in names if name in oracle.CATALOG}


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "phi3", "gemma3", "mixtral", "qwen3_moe"])
def test_tokens_are_those_of_the_mixture(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    model = oracle.tiny_model(architecture, 3, tmp_path / "model")
    model_type = json.loads((model / "config.json").read_text())["model_type"]
    mixture = {
        oracle.method_adapter(model, tmp_path / name, config): weight
        for (name, config), weight in zip(
            configurations(oracle, model_type).items(), (0.7, 0.5, 0.4, -0.6), strict=False
        )
        if config is not None
    }
    out = merged(model, tmp_path / "merged", mixture, max_shard_bytes=100_000)
    assert (out / "model.safetensors.index.json").is_file()
    assert generated(loaded(out)) == served(model, mixture)
    own = loaded(model)
    assert generated(loaded(out)) != generated(own)
    assert not json.loads((out / "config.json").read_text()).get("tie_word_embeddings")
    assert AutoTokenizer.from_pretrained(out).get_vocab() == AutoTokenizer.from_pretrained(model).get_vocab()


@pytest.mark.parametrize("architecture", ["qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_experts_and_what_stands_beside_them(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    """Stacked in two layouts, with biases and without, routed in ways of their own."""
    model = oracle.tiny_model(architecture, 3, tmp_path / "model")
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    experts = LoraConfig(r=4, lora_alpha=8, target_modules=["o_proj"], target_parameters=parameters)
    router = LoraConfig(r=2, lora_alpha=8, target_modules=["o_proj"], target_parameters=["mlp.gate.weight"])
    mixture = {oracle.method_adapter(model, tmp_path / "experts", experts): 0.8}
    if architecture == "qwen2_moe":
        mixture[oracle.method_adapter(model, tmp_path / "router", router)] = 0.5
    out = merged(model, tmp_path / "merged", mixture)
    assert generated(loaded(out)) == served(model, mixture)
    assert load_file(out / "model.safetensors").keys() == load_file(model / "model.safetensors").keys()


METHODS = (
    "lora-dora lora-bias-all lora-lora-bias lora-saving-modules lora-trainable-tokens loha lokr randlora hra ia3 beft "
    "ln-tuning oft boft road-4 shira fourierft c3a glora osf"
)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_methods_of_every_kind_alone(oracle: ModuleType, tmp_path: Path, architecture: str) -> None:
    """The logits are PEFT's own, whatever the method does to a weight, a bias, a norm, a row or a rotation."""
    model = oracle.tiny_model(architecture, 3, tmp_path / "model")
    kind = oracle.kind_of(architecture)
    for name in METHODS.split():
        entry = oracle.CATALOG[name]
        if (config := entry.make(kind)) is None:
            continue
        try:
            adapter = oracle.method_adapter(model, tmp_path / name, config, randomize=entry.randomize)
        except Exception as error:
            if oracle.is_fault(error):
                raise
            continue
        result = loaded(merged(model, tmp_path / "out" / name, {adapter: 1.0}))
        torch.testing.assert_close(
            logits(result),
            logits(oracle.peft_model(model, adapter)),
            rtol=1e-3,
            atol=1e-3,
            msg=lambda m, n=name: f"{n}: {m}",  # type: ignore[misc]
        )


def test_a_larger_vocabulary(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.tiny_model("qwen2", 3, tmp_path / "model")  # tied
    torch.manual_seed(0)
    adapter = oracle.method_adapter(model, tmp_path / "longer", LoraConfig(r=2, target_modules=["q_proj"]))
    weights = load_file(adapter / "adapter_model.safetensors")
    table = torch.cat([oracle.plain_model(model).get_input_embeddings().weight, torch.randn(5, 64)])
    weights["base_model.model.model.embed_tokens.weight"] = table
    save_file(weights, adapter / "adapter_model.safetensors", {"format": "pt"})
    out = merged(model, tmp_path / "merged", {adapter: 1.0})
    result = loaded(out)
    assert result.config.vocab_size == len(table)
    torch.testing.assert_close(result.get_output_embeddings().weight, table)
    assert generated(result) == served(model, {adapter: 1.0})


def test_a_lora_over_trained_tokens_of_a_tied_head(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.tiny_model("qwen2", 3, tmp_path / "model")
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], trainable_token_indices=[7, 40, 33])
    adapter = oracle.method_adapter(model, tmp_path / "both", config)
    result = loaded(merged(model, tmp_path / "merged", {adapter: 1.0}))
    torch.testing.assert_close(logits(result), logits(oracle.peft_model(model, adapter)), rtol=1e-4, atol=1e-4)


def test_what_nothing_changes_is_copied_byte_for_byte_and_types_are_kept(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.tiny_model("llama", 3, tmp_path / "model")
    own = {name: tensor.bfloat16() for name, tensor in load_file(model / "model.safetensors").items()}
    own["model.norm.weight"] = own["model.norm.weight"].float()
    own["not.of.this.model"] = torch.zeros(3)
    save_file(own, model / "model.safetensors", {"format": "pt"})
    adapter = oracle.method_adapter(model, tmp_path / "q", LoraConfig(r=2, target_modules=["q_proj"]))
    (model / "README.md").write_text("---\nlicense: mit\ntags:\n- a\n---\nhello")
    out = merged(model, tmp_path / "merged", {adapter: 0.5})
    now = load_file(out / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in now.items()} == {
        name: tensor.dtype for name, tensor in own.items() if name != "not.of.this.model"
    }
    changed = {name for name, tensor in now.items() if not torch.equal(tensor, own[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)}
    card = (out / "README.md").read_text()
    assert "license: mit" in card
    assert "| `q` | 0.5 | LORA | 2 | `" in card
    half = merged(model, tmp_path / "half", {adapter: 0.5}, dtype=torch.float16)
    assert {tensor.dtype for tensor in load_file(half / "model.safetensors").values()} == {torch.float16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("form", ["class", "tensor", "hook"])
def test_a_quantised_base_is_written_as_its_numbers(oracle: ModuleType, tmp_path: Path, form: str) -> None:
    plain = oracle.tiny_model("llama", 3, tmp_path / "model")
    quantised, meant = oracle.quantised_model(plain, tmp_path, form)
    adapter = oracle.method_adapter(plain, tmp_path / "q", LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    with pytest.raises(MergeRefused, match="--dequantize"):
        merged(quantised, tmp_path / "merged", {adapter: 0.5})
    out = merged(quantised, tmp_path / "merged", {adapter: 0.5}, dequantize=True, dtype=torch.float32)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    torch.testing.assert_close(
        logits(loaded(out)), logits(loaded(merged(meant, tmp_path / "meant_out", {adapter: 0.5})))
    )


REFUSED = {
    "prefix-tuning": "prefix-tuning cannot be merged: it puts virtual tokens before the prompt",
    "lora-alora": "it works only behind the tokens that invoke it",
    "lora-arrow": "which of its experts work depends on the token",
    "poly": "it is 3 tasks in one",
}


def test_what_is_no_change_of_weights_is_refused_by_name_and_leaves_nothing(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.tiny_model("mixtral", 3, tmp_path / "model")
    out, kind = tmp_path / "out" / "merged", oracle.kind_of("mixtral")
    made = {}
    for name in (*REFUSED, "lora-dora", "lora-lora-bias", "oft"):
        entry = oracle.CATALOG[name]
        made[name] = oracle.method_adapter(model, tmp_path / name, entry.make(kind), randomize=entry.randomize)
    for name, why in REFUSED.items():
        with pytest.raises(MergeRefused, match=why):
            merged(model, out, {made[name]: 1.0})
    with pytest.raises(
        MergeRefused, match=r"adds a bias to model\.layers\.0.*the configuration of a mixtral has no field"
    ):
        merged(model, out, {made["lora-lora-bias"]: 1.0})
    twin = oracle.method_adapter(model, tmp_path / "twin", oracle.CATALOG["lora-dora"].make(kind), seed=4)
    with pytest.raises(InvalidAdapter, match="two DoRA adapters, lora-dora and twin, cannot be mixed"):
        merged(model, out, {made["lora-dora"]: 0.5, twin: 0.5})
    (made["oft"] / "adapter_model.safetensors").unlink()
    with pytest.raises(MergeRefused, match=r"its folder holds no adapter_model\.safetensors"):
        merged(model, out, {made["oft"]: 1.0})
    assert not list(out.parent.iterdir())


def test_a_multimodal_model_keeps_its_towers(oracle: ModuleType, tmp_path: Path) -> None:
    """Its text is merged, all else is copied; what is on towers as well is refused by name."""
    model = oracle.wrapped_model("llava", 1, tmp_path / "model")
    text = LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|up_proj)|lm_head")
    adapter = oracle.method_adapter(model, tmp_path / "text", text)
    made = merged(model, tmp_path / "out", {adapter: 1.0})
    wanted = oracle.peft_model(model, adapter)
    torch.testing.assert_close(logits(oracle.read_model(made)), logits(wanted), rtol=1e-4, atol=1e-4)
    before, after = load_file(model / "model.safetensors"), load_file(made / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items() if "vision" in key)
    both = oracle.method_adapter(model, tmp_path / "both", LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(MergeRefused, match=r"vision_tower.*no text passes"):
        merged(model, tmp_path / "none", {both: 1.0})
