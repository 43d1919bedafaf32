"""Tensors of an adapter beside its method's own, as PEFT writes and serves them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.primitives import Bias, LowRank, Replacement

AsPeft = Callable[..., Any]
Q = "base_model.model.model.layers.0.self_attn.q_proj"
EMBEDDING = "base_model.model.model.embed_tokens"


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **options})


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("architecture", "targets", "modules"),
    [
        ("llama_biased", ["q_proj"], ["lm_head", "norm", "embed_tokens"]),
        ("llama_biased", ["q_proj", "o_proj"], ["mlp", "v_proj"]),
        ("llama", ["q_proj", "lm_head"], ["0.self_attn", "lm_head"]),
        ("qwen2", ["q_proj"], ["lm_head"]),
        ("gemma2", ["q_proj"], ["embed_tokens", "layernorm"]),
        ("gpt2", ["attn.c_proj"], ["c_fc", "ln_1", "ln_f"]),
    ],
)
def test_modules_saved_whole(
    architecture: str, targets: Any, modules: Any, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    base = tiny_base(architecture)
    bypass = as_peft(base, tmp_path, lora(target_modules=targets, modules_to_save=modules))
    ends = tuple(f"{module}" for module in modules)
    for name, primitives in bypass.sites.items():
        whole = any(name[: len(name) - cut].endswith(ends) for cut in range(len(name)))
        assert [type(primitive) for primitive in primitives] == [Replacement if whole else LowRank], name


@pytest.mark.parametrize("modules", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_modules_saved_whole_and_tied(
    architecture: str, modules: Any, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    config = lora(modules_to_save=modules, ensure_weight_tying=True)
    sites = as_peft(tiny_base(architecture), tmp_path, config).sites
    assert torch.equal(sites["model.embed_tokens"][0].weight, sites["lm_head"][0].weight)


@pytest.mark.parametrize("copy", ["weight", "modules_to_save.weight"])
def test_copies_of_a_tied_pair_are_equal(
    copy: str, tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType
) -> None:
    """PEFT loads both into the parameter that the pair shares: the last one would win."""
    base, config = tiny_base("qwen2"), lora(modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    folder = oracle.method_adapter(base.folder, tmp_path, config, save_embedding_layers=True)
    compiled(folder, base)
    edit(folder, lambda t: t[f"base_model.model.lm_head.{copy}"].add_(0.1))
    refused(folder, base, InvalidAdapter, rf"lm_head\.{copy} is not the weight of the embedding, which ties it")


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("target", [None, "name"])
def test_trainable_tokens(
    architecture: str, target: str | None, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    base = tiny_base(architecture)
    embedding = "wte" if architecture == "gpt2" else "embed_tokens"
    config = peft.TrainableTokensConfig(token_indices=[42, 7, 5, 200], target_modules=target and [embedding])
    sites = as_peft(base, tmp_path, config).sites
    assert ("lm_head" in sites) is (base.table.tied_head is not None)
    assert sites[next(iter(sites))][0].ids.tolist() == [5, 7, 42, 200]


@pytest.mark.parametrize(
    ("architecture", "tokens"),
    [
        ("llama", [7, 5]),
        ("llama", {"lm_head": [5, 6], "embed_tokens": [42]}),
        ("qwen2", [7, 5]),
        ("qwen2", {"embed_tokens": [42, 7]}),
        ("qwen2", {"lm_head": [42, 7], "embed_tokens": [42, 7]}),
        ("gemma2", [42]),
        ("gpt2", {"wte": [17, 250]}),
    ],
)
def test_trained_tokens_beside_a_method(
    architecture: str, tokens: Any, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    targets = ["c_attn"] if architecture == "gpt2" else ["q_proj"]
    as_peft(tiny_base(architecture), tmp_path, lora(trainable_token_indices=tokens, target_modules=targets))


@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"bias": "all"}])
@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_trained_tokens_below_a_lora_on_the_tied_head(
    architecture: str, options: Any, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    config = lora(target_modules=["q_proj", "lm_head"], trainable_token_indices=[42, 7, 250], **options)
    kinds = [primitive.kind for primitive in as_peft(tiny_base(architecture), tmp_path, config).sites["lm_head"]]
    assert kinds[:2] == ["rows", "low_rank"]


def test_trained_tokens_beside_another_adapter_of_the_same_module(
    tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType
) -> None:
    """PEFT fails on the first, and on the others already where they are made."""
    base = tiny_base("qwen2")
    targets, ids = {"target_modules": ["q_proj", "lm_head"]}, {"trainable_token_indices": [42, 7]}
    folder = oracle.method_adapter(base.folder, tmp_path, lora(**targets, **ids, use_dora=True))
    with pytest.raises(AttributeError, match="TrainableTokensWrapper"):
        oracle.peft_logits(base.folder, folder, [5])
    refused(folder, base, UnsupportedAdapter, "tied to lm_head are not supported yet beside anything but a plain LoRA")
    for name, module in (("lm_head", "lm_head"), ("embed_tokens", "model.embed_tokens")):
        config = lora(target_modules=["q_proj", name], trainable_token_indices={name: [42, 7]})
        with pytest.raises(TypeError, match="trainable_token_indices cannot be applied"):
            oracle.method_adapter(base.folder, tmp_path, config)
        folder = oracle.method_adapter(base.folder, tmp_path / name, lora(target_modules=["q_proj", name]))
        edit_config(folder, trainable_token_indices={name: [42, 7]})
        rows = f"base_model.model.{module}.token_adapter.trainable_tokens_delta"
        edit(folder, lambda t, rows=rows: t.update({rows: torch.ones(2, 64)}))  # type: ignore[misc]
        refused(folder, base, InvalidAdapter, f"{module} is both adapted and replaced, which PEFT does not do")


@pytest.mark.parametrize("bias", ["all", "lora_only"])
@pytest.mark.parametrize("architecture", ["llama_biased", "qwen2", "gpt2"])
def test_trained_biases(
    architecture: str, bias: str, tiny_base: Callable[[str], Any], tmp_path: Path, as_peft: AsPeft
) -> None:
    targets = ["c_attn"] if architecture == "gpt2" else ["q_proj", "down_proj"]
    sites = as_peft(tiny_base(architecture), tmp_path, lora(bias=bias, target_modules=targets)).sites
    biased = [name for name, primitives in sites.items() if any(isinstance(p, Bias) for p in primitives)]
    assert biased
    assert all(name.endswith(tuple(targets)) for name in biased) is (bias == "lora_only")


def test_biases_of_modules_that_have_none(llama: Any, tmp_path: Path, as_peft: AsPeft) -> None:
    assert not any(isinstance(p, Bias) for ps in as_peft(llama, tmp_path, lora(bias="all")).sites.values() for p in ps)


@pytest.fixture
def folder(llama: Any, oracle: ModuleType, tmp_path: Path) -> Path:
    config = lora(target_modules=["embed_tokens"], modules_to_save=["norm"])
    path: Path = oracle.method_adapter(llama.folder, tmp_path / "adapter", config)
    return path


def compiled(folder: Path, base: Any) -> Any:
    return compile_adapter(folder, base.table, torch.float32, model=base.model).bypass


def test_an_embedding_of_another_base_takes_its_place(folder: Path, llama: Any, oracle: ModuleType) -> None:
    edit(folder, lambda t: t[f"{EMBEDDING}.base_layer.weight"].add_(0.1))
    bypass = compiled(folder, llama)
    assert [p.kind for p in bypass.sites["model.embed_tokens"]] == ["replacement", "low_rank"]
    ids = [5, 17, 42, 99, 7]
    wanted = oracle.peft_logits(llama.folder, folder, ids)
    got = oracle.naive_logits(oracle.plain_model(llama.folder), bypass, ids)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_larger_vocabulary(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """Tokens beyond the base's, embedded and predicted by the adapter's own rows."""
    model = oracle.plain_model(llama.folder)
    model.resize_token_embeddings(307, mean_resizing=False)
    wrapped = peft.get_peft_model(model, lora(modules_to_save=["embed_tokens", "lm_head"]))
    wrapped.save_pretrained(tmp_path)
    bypass = compiled(tmp_path, llama)
    assert bypass.sites["lm_head"][0].weight.shape == (307, 64)
    ids = [5, 306, 42, 300]
    with torch.inference_mode():
        wanted = wrapped.eval()(torch.tensor([ids])).logits[0]
    got = oracle.naive_logits(oracle.plain_model(llama.folder), bypass, ids)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_head_may_not_say_what_no_embedding_reads(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    model = oracle.plain_model(llama.folder)
    model.resize_token_embeddings(307, mean_resizing=False)
    peft.get_peft_model(model, lora(modules_to_save=["lm_head"])).save_pretrained(tmp_path, save_embedding_layers=False)
    refused(tmp_path, llama, InvalidAdapter, "its lm_head says 307 tokens, and no embedding of its own reads as many")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_tokens_beyond_the_base_s(
    architecture: str, tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType
) -> None:
    base = tiny_base(architecture)
    model = oracle.plain_model(base.folder)
    model.resize_token_embeddings(303, mean_resizing=False)
    wrapped = peft.get_peft_model(model, lora(trainable_token_indices=[301, 302, 3]))
    torch.nn.init.normal_(wrapped.get_input_embeddings().token_adapter.trainable_tokens_delta["default"], std=0.3)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=True)
    bypass = compiled(tmp_path, base)
    ids = [5, 301, 42, 302]
    with torch.inference_mode():
        wanted = wrapped.eval()(torch.tensor([ids])).logits[0]
    got = oracle.naive_logits(oracle.plain_model(base.folder), bypass, ids)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)


def refused(folder: Path, base: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as error:
        compiled(folder, base)
    assert type(error.value) is kind


def test_what_does_not_fit_is_named(folder: Path, llama: Any) -> None:
    edit(folder, lambda t: t.update({f"{EMBEDDING}.base_layer.weight": torch.zeros(301, 64)}))
    refused(
        folder, llama, InvalidAdapter, "vocabularies of several sizes: 301 at .*base_layer.weight, 300 at .*embedding_A"
    )
    edit(folder, lambda t: t.update({f"{EMBEDDING}.base_layer.weight": torch.zeros(300, 63)}))
    refused(folder, llama, InvalidAdapter, r"has the shape \(300, 63\); the weight of model.embed_.*\(300, 64\)")
    edit(folder, lambda t: t.pop(f"{EMBEDDING}.base_layer.weight"))
    edit(folder, lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(63)}))
    refused(folder, llama, InvalidAdapter, r"norm.weight has the shape \(63,\)")
    edit(folder, lambda t: t.update({"base_model.model.model.norm.weight": torch.full((64,), float("nan"))}))
    refused(folder, llama, InvalidAdapter, r"model.norm.weight holds NaN or infinity")
    edit(folder, lambda t: t.pop("base_model.model.model.norm.weight"))
    refused(folder, llama, InvalidAdapter, r"tensors that are missing: base_model.model.model.norm.weight")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"modules_to_save": "norm"}, "modules_to_save must be a list"),
        ({"modules_to_save": [""]}, "modules_to_save must be a list"),
        ({"modules_to_save": [3]}, "modules_to_save must be a list"),
        ({"trainable_token_indices": [3]}, "rows of the trained tokens are missing"),
        ({"trainable_token_indices": {"q_proj": [3]}}, "names 'q_proj', which is no embedding"),
        ({"trainable_token_indices": {"lm_head": [3]}}, "missing: .*lm_head.token_adapter.trainable_tokens_delta"),
        ({"trainable_token_indices": {"lm_head": 3}}, "must be a list of integers"),
        ({"trainable_token_indices": [-3]}, "must be an integer of at least 0"),
        ({"modules_to_save": ["norm", "lm_head"], "trainable_token_indices": {"lm_head": [3]}}, "do not go together"),
        ({"bias": "some"}, "bias must be none, all or"),
        ({"bias": True}, "bias must be none, all or"),
    ],
)
def test_configurations_that_do_not_fit(folder: Path, llama: Any, fields: Any, message: str) -> None:
    edit_config(folder, **fields)
    if message == "do not go together":
        head = {"lm_head.weight": (300, 64), "lm_head.token_adapter.trainable_tokens_delta": (1, 64)}
        edit(folder, lambda t: t.update({f"base_model.model.{key}": torch.ones(shape) for key, shape in head.items()}))
    refused(folder, llama, InvalidAdapter, message)


def test_modules_to_save_that_the_base_does_not_have(folder: Path, llama: Any, oracle: ModuleType) -> None:
    """PEFT passes over them; of a tensor for one that nobody takes it is said as of any other."""
    wanted = oracle.peft_logits(llama.folder, folder, [5, 17, 42])
    edit_config(folder, modules_to_save=["norm", "classifier", "score", "act_fn"])
    adapter = compile_adapter(folder, llama.table, torch.float32, model=llama.model)
    assert torch.equal(oracle.peft_logits(llama.folder, folder, [5, 17, 42]), wanted)
    got = oracle.naive_logits(oracle.plain_model(llama.folder), adapter.bypass, [5, 17, 42])
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=2e-4)
    assert adapter.facts.notes[0].endswith("ignored there: classifier, score")
    edit(folder, lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 64)}))
    refused(folder, llama, InvalidAdapter, "does not put on this base: base_model.model.score.weight")


def test_rows_that_do_not_fit(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, peft.TrainableTokensConfig(token_indices=[3, 9]))
    for ids, message in (
        ([3, 302], "token 302 is trained, but the vocabulary has 300 tokens"),
        ([3, 301], "has 302 tokens, 2 more than the base, but at model.embed_tokens it lacks the rows of 300"),
        ([3, 3], "not distinct"),
        ([], "are none"),
        ([3], r"has the shape \(2, 64\); 1 tokens at model.embed_tokens take: \(1, 64\)"),
    ):
        edit_config(folder, token_indices=ids)
        refused(folder, llama, InvalidAdapter, message)


def test_missing_biases_are_named(tiny_base: Callable[[str], Any], tmp_path: Path, oracle: ModuleType) -> None:
    base = tiny_base("llama_biased")
    folder = oracle.method_adapter(base.folder, tmp_path, lora(bias="lora_only"))
    edit(folder, lambda t: t.pop(f"{Q}.base_layer.bias"))
    refused(folder, base, InvalidAdapter, f"tensors that are missing: {Q}.bias")
