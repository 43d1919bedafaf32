"""Whatever is in a checkpoint, compiling it gives an adapter or an AdapterError with a short message."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.sites import Site, SiteKind, SiteTable

SITES = [
    Site("model.embed_tokens", SiteKind.EMBEDDING, 6, 4, 2.0),
    Site("model.layers.0.q_proj", SiteKind.LINEAR, 4, 3),
    Site("lm_head", SiteKind.HEAD, 4, 6),
]
TABLE = SiteTable({site.name: site for site in SITES}, "lm_head", "model.embed_tokens", frozenset({"model.norm"}))

LAYERS = nn.ModuleList([nn.ModuleDict({"q_proj": nn.Linear(4, 3)})])
MODEL = nn.ModuleDict(
    {
        "model": nn.ModuleDict({"embed_tokens": nn.Embedding(6, 4), "layers": LAYERS}),
        "lm_head": nn.Linear(4, 6, bias=False),
    }
)
NAMES = st.sampled_from(["q_proj", "embed_tokens", "lm_head", "norm", "0.q_proj", "\ud800", "x" * 300])
NUMBERS = st.sampled_from([0, 1, 2, 3, -1, 1e9, 0.5, None, True, "2"])
CONFIGS = st.fixed_dictionaries(
    {
        "peft_type": st.just("LORA"),
        "target_modules": st.lists(NAMES, max_size=3) | st.sampled_from(["all-linear", ".*", "("]),
    },
    optional={
        "r": NUMBERS,
        "lora_alpha": NUMBERS,
        "exclude_modules": st.lists(NAMES, max_size=2) | st.just(".*q.*"),
        "layers_to_transform": st.lists(st.integers(0, 2), max_size=2),
        "layers_pattern": NAMES,
        "rank_pattern": st.dictionaries(NAMES, NUMBERS, max_size=2),
        "alpha_pattern": st.dictionaries(NAMES, NUMBERS, max_size=2),
        "ensure_weight_tying": st.booleans(),
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "lora_bias": st.booleans(),
        "kasa_config": st.none() | st.just({"beta": 1.0}),
        "use_bdlora": st.none() | st.just({"nblocks": 2, "target_modules_bd_a": ["q"], "match_strict": False}),
        "use_qalora": st.booleans(),
        "qalora_group_size": NUMBERS,
        "init_lora_weights": st.sampled_from([True, "pissa", "olora"]),
        "modules_to_save": st.lists(NAMES, max_size=2),
        "trainable_token_indices": st.lists(NUMBERS, max_size=3) | st.dictionaries(NAMES, st.just([0, 3])),
        "bias": st.sampled_from(["none", "all", "lora_only", "x"]),
        "\udfff": NUMBERS,
    },
)
MODULES = st.sampled_from([site.name for site in SITES] + ["model.norm", "model.layers.1.q_proj"])
SUFFIXES = [
    "lora_A.weight",
    "lora_B.weight",
    "lora_B.bias",
    "lora_magnitude_vector",
    "lora_diag",
    "lora_embedding_A",
    "lora_embedding_B",
    "base_layer.weight",
    "base_layer.bias",
    "weight",
    "token_adapter.trainable_tokens_delta",
    "x",
]
KEYS = st.builds("{}{}.{}".format, st.sampled_from(["", "base_model.model."]), MODULES, st.sampled_from(SUFFIXES))
SHAPES = st.sampled_from([(2, 4), (3, 2), (2, 6), (6, 2), (4, 2), (6, 4), (3,), (), (0, 4), (2, 4, 1)])
TENSORS = st.dictionaries(KEYS, st.tuples(SHAPES, st.sampled_from([0.0, 1.0, float("nan"), 1e30])), max_size=6)


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], float]]) -> None:
    (folder / "adapter_config.json").write_text(json.dumps(config))
    filled = {key: torch.full(shape, value) for key, (shape, value) in tensors.items()}
    save_file(filled, folder / "adapter_model.safetensors")


# What q_proj alone wants at rank 2: some of it is there in most examples.
GOOD: dict[str, tuple[tuple[int, ...], float]] = {
    "base_model.model.model.layers.0.q_proj.lora_A.weight": ((2, 4), 1.0),
    "base_model.model.model.layers.0.q_proj.lora_B.weight": ((3, 2), 1.0),
}
MOSTLY_GOOD = st.builds(
    lambda left, more: {**dict(left), **more}, st.sets(st.sampled_from(list(GOOD.items()))), TENSORS
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CONFIGS, MOSTLY_GOOD)
def test_fuzzed_checkpoints(tmp_path: Path, config: Mapping[str, Any], tensors: Any) -> None:
    write(tmp_path, config, tensors)
    message = ""
    try:
        compiled = compile_adapter(tmp_path, TABLE, torch.float16, max_rank=4, model=MODEL)
        assert compiled.facts.consumed == len(tensors)
        assert compiled.facts.sites >= 1
    except AdapterError as error:
        message = error.message
    assert len(message.encode()) < 4000


def test_the_good_one_is_good(tmp_path: Path) -> None:
    write(tmp_path, {"peft_type": "LORA", "target_modules": ["q_proj"], "r": 2}, GOOD)
    assert compile_adapter(tmp_path, TABLE, torch.float16).facts.sites == 1
