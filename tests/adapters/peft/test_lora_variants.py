"""Every variant of LoRA that PEFT has, as PEFT writes and serves it."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter, UnsupportedAdapter
from peftserve.adapters.peft.base import Base, NamedTensor
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.lora_variants import primitives_of, stored_shapes
from peftserve.adapters.peft.variant import LoraVariant
from peftserve.adapters.primitives import Bias, LowRank, OutputScale
from peftserve.adapters.sites import Site, SiteKind, SiteTable

AsPeft = Callable[..., Any]
TinyBases = Callable[[str], Any]
Q = "base_model.model.model.layers.0.self_attn.q_proj"


def lora(**options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **options})


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama_biased", ["q_proj", "down_proj"]),
        ("qwen2", ["k_proj", "lm_head"]),
        ("gemma2", ["embed_tokens", "o_proj"]),
        ("phi3", "all-linear"),
        ("gpt2", ["c_attn", "c_proj", "wte"]),
    ],
)
def test_dora(architecture: str, targets: Any, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    bypass = as_peft(tiny_base(architecture), tmp_path, lora(target_modules=targets, use_dora=True, use_rslora=True))
    assert bypass.exclusive == ("DoRA",)
    assert all(any(isinstance(p, OutputScale) for p in ps) for ps in bypass.sites.values())


def test_dora_beside_trained_biases(tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    as_peft(tiny_base("llama_biased"), tmp_path, lora(use_dora=True, bias="all"))


def test_dora_over_another_embedding(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    """Its magnitudes are of the weight that comes along with it."""
    folder = oracle.method_adapter(llama.folder, tmp_path, lora(target_modules=["embed_tokens"], use_dora=True))
    edit(folder, lambda t: t["base_model.model.model.embed_tokens.base_layer.weight"].add_(0.3))
    bypass = compile_adapter(folder, llama.table, torch.float32, model=llama.model).bypass
    ids = [5, 17, 42, 99, 7]
    got = oracle.naive_logits(oracle.plain_model(llama.folder), bypass, ids)
    torch.testing.assert_close(got, oracle.peft_logits(llama.folder, folder, ids), rtol=1e-4, atol=2e-4)


def test_dora_on_a_tied_pair(tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    as_peft(
        tiny_base("qwen2"), tmp_path, lora(target_modules=["embed_tokens"], use_dora=True, ensure_weight_tying=True)
    )


@pytest.mark.parametrize("architecture", ["llama_biased", "gpt2"])
def test_biases_of_b(architecture: str, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    targets = ["c_attn"] if architecture == "gpt2" else ["q_proj", "lm_head"]
    bypass = as_peft(tiny_base(architecture), tmp_path, lora(target_modules=targets, lora_bias=True))
    assert all([type(p) for p in ps] == [LowRank, Bias] for ps in bypass.sites.values())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize(
    ("architecture", "targets", "init"),
    [
        ("llama", ["q_proj", "down_proj", "lm_head"], "pissa"),
        ("llama", ["q_proj", "down_proj", "k_proj"], "olora"),
        ("qwen2", ["q_proj", "embed_tokens"], "pissa"),
        ("gpt2", ["c_attn", "c_proj"], "pissa"),
        ("gpt2", ["attn.c_proj"], "olora"),
    ],
)
def test_starts_from_the_base_s_weight(
    architecture: str, targets: Any, init: str, dora: bool, tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft
) -> None:
    config = lora(target_modules=targets, init_lora_weights=init, use_dora=dora)
    bypass = as_peft(tiny_base(architecture), tmp_path, config)
    assert bypass.rank == 8
    # PEFT saves what is left of a head, which then takes the base's place.
    assert [p.kind for p in bypass.sites.get("lm_head", ())][:1] in ([], ["replacement"])


def test_kasa(llama: Any, tmp_path: Path, as_peft: AsPeft) -> None:
    assert as_peft(llama, tmp_path, lora(kasa_config=KasaConfig())).rank == 8


@pytest.mark.parametrize(
    "form",
    [
        {"init_lora_weights": "mica"},
        {"velora_config": VeloraConfig(num_groups=4, init_type="random")},
        {"monteclora_config": MontecloraConfig(num_samples=2)},
    ],
)
def test_forms_that_are_plain_at_inference(form: Any, llama: Any, tmp_path: Path, as_peft: AsPeft) -> None:
    bypass = as_peft(llama, tmp_path, lora(**form))
    assert {type(p) for ps in bypass.sites.values() for p in ps} == {LowRank}


@pytest.mark.parametrize("strict", [True, False])
def test_block_diagonal_factors(strict: bool, llama: Any, tmp_path: Path, as_peft: AsPeft) -> None:
    bd = BdLoraConfig(target_modules_bd_a=["down_proj"], target_modules_bd_b=["0.self_attn", "q_proj"], nblocks=2)
    bd.match_strict = strict
    targets = ["q_proj", "down_proj"] if strict else ["q_proj", "k_proj", "down_proj"]
    as_peft(llama, tmp_path, lora(target_modules=targets, use_bdlora=bd))


def test_means_of_groups() -> None:
    """QALoRA, which PEFT has on GPTQ's layers alone, by its formula."""
    site, variant = Site("q", SiteKind.LINEAR, 12, 6), LoraVariant(pool=4)
    assert stored_shapes(site, 2, variant) == ((2, 3), (6, 2))
    generator = torch.Generator().manual_seed(0)
    a, b, x = (torch.randn(shape, generator=generator) for shape in ((2, 3), (6, 2), (5, 12)))
    factors = {"lora_A": NamedTensor("a", a), "lora_B": NamedTensor("b", b)}
    (low,) = primitives_of(site, factors, 0.5, variant, Base(SiteTable({"q": site}), torch.float32))
    wanted = 0.5 * (x.unflatten(1, (3, 4)).mean(2) * 3) @ a.T @ b.T
    torch.testing.assert_close(x @ low.a.T @ low.b.T, wanted)
    with pytest.raises(InvalidAdapter, match="12 at q cannot be divided by 5"):
        stored_shapes(site, 2, LoraVariant(pool=5))


@pytest.mark.parametrize("group", [1, 7, 16])
@pytest.mark.parametrize("target", ["down_proj", "embed_tokens"])
def test_qalora_is_a_plain_lora_on_layers_that_are_not_quantised(
    group: int, target: str, llama: Any, tmp_path: Path, as_peft: AsPeft
) -> None:
    as_peft(llama, tmp_path, lora(use_qalora=True, qalora_group_size=group, target_modules=["q_proj", target]))


def test_invocation(llama: Any, tmp_path: Path, as_peft: AsPeft) -> None:
    """The prompt that `as_peft` compares begins with these tokens: the adapter works from there on."""
    folder = tmp_path
    bypass = as_peft(llama, folder, lora(alora_invocation_tokens=[5, 17], task_type="CAUSAL_LM"))
    assert bypass.invocation == (5, 17)
    edit_config(folder, modules_to_save=["lm_head"])
    edit(folder, lambda t: t.update({"base_model.model.lm_head.weight": torch.zeros(300, 64)}))
    with pytest.raises(UnsupportedAdapter, match="alora_invocation_tokens is not supported yet beside trained modules"):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)


@pytest.mark.parametrize(
    ("form", "key"),
    [
        ({"use_dora": True}, "lora_magnitude_vector"),
        ({"lora_bias": True}, "lora_B.bias"),
        ({"kasa_config": KasaConfig()}, "lora_diag"),
    ],
)
def test_tensors_of_a_form_are_checked(form: Any, key: str, llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, lora(**form))

    def refused(kind: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            compile_adapter(folder, llama.table, torch.float32, **{"model": llama.model, **options})

    edit(folder, lambda t: t[f"{Q}.{key}"].fill_(float("inf")))
    refused(InvalidAdapter, "holds NaN or infinity")
    edit(folder, lambda t: t.update({f"{Q}.{key}": torch.zeros(3)}))
    refused(InvalidAdapter, rf"{key} has the shape \(3,\)")
    edit(folder, lambda t: t.pop(f"{Q}.{key}"))
    refused(InvalidAdapter, f"missing: {Q}.{key}")
    if key != "lora_B.bias":
        edit(folder, lambda t: t.update({f"{Q}.{key}": torch.ones(64 if "mag" in key else 4)}))
        refused(UnsupportedAdapter, "needs the base's weight at model.layers.0", model=None)


def test_twice_the_rank_is_checked(llama: Any, tmp_path: Path, oracle: ModuleType) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, lora(init_lora_weights="pissa"))
    with pytest.raises(AdapterTooLarge, match="pissa of rank 4 is served with twice the rank; the server's limit is 7"):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model, max_rank=7)


def test_a_part_of_a_tied_weight(tiny_base: TinyBases, tmp_path: Path, as_peft: AsPeft) -> None:
    """PEFT saves the embedding's factors for the head, too."""
    base, folder = tiny_base("qwen2"), tmp_path
    bypass = as_peft(base, folder, lora(init_lora_weights="olora", target_modules=["lm_head"]))
    assert [p.kind for p in bypass.sites["model.embed_tokens"]] == ["replacement"]
    edit(folder, lambda t: t.pop("base_model.model.lm_head.base_layer.weight"))
    with pytest.raises(UnsupportedAdapter, match="olora on lm_head is not supported yet"):
        compile_adapter(folder, base.table, torch.float32, model=base.model)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"use_bdlora": {"nblocks": 3, "target_modules_bd_a": ["q_proj"], "match_strict": False}},
            "cannot be divided by 3",
        ),
        ({"use_bdlora": {"nblocks": 2}}, "neither factor is block-diagonal"),
        ({"use_bdlora": {"target_modules_bd_a": ["q_"], "target_modules_bd_b": ["proj"]}}, "both its factors are"),
        ({"kasa_config": {"beta": 1.0}, "target_modules": ["embed_tokens"]}, "linear layers, not for model.embed_tok"),
    ],
)
def test_configurations_that_do_not_fit(
    fields: Any, message: str, llama: Any, tmp_path: Path, oracle: ModuleType
) -> None:
    folder = oracle.method_adapter(llama.folder, tmp_path, lora())
    edit_config(folder, **fields)
    with pytest.raises(InvalidAdapter, match=message):
        compile_adapter(folder, llama.table, torch.float32, model=llama.model)
