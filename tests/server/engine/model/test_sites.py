"""Which modules of transformers' models are sites, which share an input, and what the hooks do there."""

from collections.abc import Callable
from types import ModuleType

import pytest

from peftserve.adapters.sites import Site, SiteKind
from peftserve.kernels.layout import Group, Rows
from peftserve.server.config import EngineConfig
from peftserve.server.engine.model.loading import LoadedModel, load_model

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
        assert (spec.rows is Rows.LOGITS) == (site.kind is SiteKind.HEAD)


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
