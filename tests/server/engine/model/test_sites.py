"""Which modules of transformers' models are sites, which share an input, and what the hooks do there."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from peftserve.adapters.sites import Site, SiteKind
from peftserve.kernels.bypass.layout import Group, RowSet
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.loading import LoadedModel, load_model
from peftserve.server.engine.model.sites import TracedSites

Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def load(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads a tiny model, once each."""
    loaded: dict[str, LoadedModel] = {}

    def get(architecture: str) -> LoadedModel:
        if architecture not in loaded:
            folder = oracle.tiny_model(architecture, 0, tmp_path_factory.mktemp(architecture))
            loaded[architecture] = load_model(EngineConfig(model=str(folder), device="cpu"))
        return loaded[architecture]

    return get


def groups_of(loaded: LoadedModel, layer: str) -> set[tuple[str, ...]]:
    """The groups of one layer, as names below it in the order of their positions."""
    members: dict[int, dict[int, str]] = {}
    for name, (group, position) in loaded.sites.groups.places.items():
        if name.startswith(layer):
            members.setdefault(group, {})[position] = name.removeprefix(layer)
    return {tuple(names[i] for i in range(len(names))) for names in members.values()}


LLAMA = {
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
}
LAYERS: dict[str, tuple[str, set[tuple[str, ...]]]] = {
    **dict.fromkeys(
        ["llama", "llama_biased", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"], ("model.layers.1.", LLAMA)
    ),
    "phi3": (
        "model.layers.1.",
        {("self_attn.qkv_proj",), ("self_attn.o_proj",), ("mlp.gate_up_proj",), ("mlp.down_proj",)},
    ),
    "gpt2": ("transformer.h.1.", {("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",)}),
    "opt": (
        "model.decoder.layers.1.",
        {("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.out_proj",), ("fc1",), ("fc2",)},
    ),
}


@pytest.mark.parametrize("architecture", LAYERS)
def test_modules_that_read_the_same_tensor_are_one_group(load: Load, architecture: str) -> None:
    layer, expected = LAYERS[architecture]
    loaded = load(architecture)
    assert groups_of(loaded, layer) == expected
    matrices = {name for name, site in loaded.sites.table.sites.items() if site.kind is not SiteKind.NORM}
    assert matrices == set(loaded.sites.groups.places)
    for name, (group, position) in loaded.sites.groups.places.items():
        site, spec = loaded.sites.table.sites[name], loaded.sites.groups.groups[group]
        assert (site.in_features, site.out_features) == (spec.in_features, spec.out_features[position])
        assert spec.gather == (site.kind is SiteKind.EMBEDDING)
        assert (spec.rows is RowSet.LOGITS) == (site.kind is SiteKind.HEAD)


def test_sites_are_in_the_models_own_order(load: Load) -> None:
    """Phi-3 calls qkv_proj before o_proj and has them the other way round."""
    loaded = load("phi3")
    names = [name for name, _ in loaded.model.named_modules() if name in loaded.sites.table.sites]
    assert list(loaded.sites.table.sites) == names


def test_shapes_of_grouped_heads_and_of_the_head(load: Load) -> None:
    loaded = load("llama")
    table, groups = loaded.sites.table, loaded.sites.groups
    assert groups.groups[groups.places["model.layers.0.self_attn.q_proj"][0]] == Group(64, (64, 32, 32))
    assert table.sites["lm_head"] == Site("lm_head", SiteKind.HEAD, 64, 300)
    assert table.sites["model.embed_tokens"] == Site("model.embed_tokens", SiteKind.EMBEDDING, 300, 64)
    assert "model.layers.0.mlp" in table.other_modules
    assert table.sites["model.norm"] == Site("model.norm", SiteKind.NORM, 64, 64)


def test_norms_over_heads_are_sites_too(load: Load) -> None:
    sites = load("qwen3").sites.table.sites
    assert sites["model.layers.0.self_attn.q_norm"] == Site("model.layers.0.self_attn.q_norm", SiteKind.NORM, 32, 32)


def test_conv1d_is_a_linear_with_its_widths_the_right_way_round(load: Load) -> None:
    site = load("gpt2").sites.table.sites["transformer.h.0.attn.c_attn"]
    assert site == Site(site.name, SiteKind.LINEAR, 64, 192, transposed=True)


@pytest.mark.parametrize(
    ("architecture", "head", "tied"),
    [
        ("llama", "lm_head", None),
        ("qwen2", "lm_head", "model.embed_tokens"),
        ("gpt2", "lm_head", "transformer.wte"),
        ("opt", "lm_head", "model.decoder.embed_tokens"),
    ],
)
def test_tied_heads_are_told_apart(load: Load, architecture: str, head: str, tied: str | None) -> None:
    table = load(architecture).sites.table
    assert (table.head, table.tied_head) == (head, tied)
    assert table.sites[head].kind is SiteKind.HEAD


def test_the_embedding_of_gemma_has_its_scale(load: Load) -> None:
    assert load("gemma3").sites.table.sites["model.embed_tokens"].embed_scale == 8.0
    assert load("qwen2").sites.table.sites["model.embed_tokens"].embed_scale == 1.0


def test_the_positions_of_opt_are_no_site(load: Load) -> None:
    """What they are called with is not the text's token ids."""
    table = load("opt").sites.table
    assert "model.decoder.embed_positions" not in table.sites
    assert "model.decoder.embed_positions" in table.other_modules


def _bert(folder: Path) -> TracedSites:
    sizes = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.BertConfig(**sizes, intermediate_size=48, pad_token_id=2, is_decoder=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_model(EngineConfig(model=str(folder), device="cpu")).sites


def test_what_is_between_the_body_and_the_head_sees_the_rows_whose_logits_are_wanted(tmp_path: Path) -> None:
    sites = _bert(tmp_path)
    transform, head = "cls.predictions.transform", "cls.predictions.decoder"
    wanted = {f"{transform}.dense", f"{transform}.LayerNorm", head}
    assert {name for name, rows in sites.rows().items() if rows is RowSet.LOGITS} == wanted
    group, _ = sites.groups.places[f"{transform}.dense"]
    assert sites.groups.groups[group].rows is RowSet.LOGITS
    assert sites.table.sites[f"{transform}.dense"].kind is SiteKind.LINEAR
    assert not sites.table.irregular


@pytest.mark.parametrize("flipped", [True, False], ids=["other order", "twice"])
def test_a_linear_that_sees_other_rows_is_no_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flipped: bool
) -> None:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Through the dense with rows in another order, or in twice their number."""
        there = hidden_states.flip(1) if flipped else torch.cat([hidden_states, hidden_states], 1)
        back = self.dense(there)
        back = back.flip(1) if flipped else back[:, : hidden_states.shape[1]]
        return self.LayerNorm(self.transform_act_fn(back))

    monkeypatch.setattr(transformers.models.bert.modeling_bert.BertPredictionHeadTransform, "forward", forward)
    table = _bert(tmp_path).table
    assert table.irregular == {"cls.predictions.transform.dense"}
    assert "cls.predictions.transform.LayerNorm" in table.sites
