"""Which models are refused, why, and what is read of those that are served."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PretrainedConfig

from peftserve.server.config import EngineConfig
from peftserve.server.engine.model import attention as attention_module
from peftserve.server.engine.model import loading
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.fused import fuse_siblings
from peftserve.server.engine.model.loading import (
    LoadedModel,
    load_model,
    vocabulary_size,
)

Tiny = Callable[..., Path]

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1}
WIDTHS = {"num_attention_heads": 4, "intermediate_size": 48}
KV = {"num_key_value_heads": 2, "pad_token_id": 2}


def load(folder: Path, **options: Any) -> LoadedModel:
    return load_model(EngineConfig(**{"model": str(folder), "device": "cpu", **options}))


def save(config: PretrainedConfig, folder: Path) -> Path:
    """A model with weights large enough for its attention to matter."""
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder)
    return folder


# What is refused

REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "bloom": (
        lambda: transformers.BloomConfig(
            vocab_size=60, hidden_size=32, n_layer=2, n_head=4, pretraining_tp=2, slow_but_exact=True
        ),
        "set it to false",
    ),
    "falcon with ALiBi": (
        lambda: transformers.FalconConfig(**SMALL, num_attention_heads=4, alibi=True),
        "transformers' own two ways to compute Falcon's ALiBi differ",
    ),
    "roformer": (
        lambda: transformers.RoFormerConfig(**SMALL, **WIDTHS, is_decoder=True),
        "does not call transformers' attention interface",
    ),
    "bert": (
        lambda: transformers.BertConfig(**SMALL, **WIDTHS),
        "off by .*: it uses attention unknown here",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_models_that_would_be_served_wrongly_are_refused(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    folder = save(config(), tmp_path)
    with pytest.raises(UnservableModel, match=reason):
        load(folder)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: transformers.T5Config(num_layers=2), "it is an encoder-decoder"),
        (
            lambda: transformers.LlamaConfig(layer_types=["full_attention", "indexed_attention"], num_hidden_layers=2),
            "layers of type indexed_attention choose the keys that they see by an index of their own",
        ),
        (
            lambda: transformers.Gemma3TextConfig(num_hidden_layers=2, use_bidirectional_attention=True),
            "its attention is bidirectional",
        ),
        (
            lambda: transformers.Gemma4TextConfig(num_hidden_layers=6, use_bidirectional_attention="all"),
            "its attention is bidirectional",
        ),
    ],
)
def test_the_configuration_alone_may_say_no(
    config: Callable[[], PretrainedConfig], reason: str, tmp_path: Path
) -> None:
    """Before any weights are read: there are none."""
    config().save_pretrained(tmp_path)
    with pytest.raises(UnservableModel, match=reason):
        load(tmp_path)


def test_attention_that_computes_something_else_is_refused(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would where a model hands over what our attention overlooks."""
    plain = attention_module.attend_prefill
    monkeypatch.setattr(
        attention_module, "attend_prefill", lambda *a: plain(*a[:4], replace(a[4], scale=a[4].scale * 1.1))
    )
    with pytest.raises(UnservableModel, match="attention behind transformers' interface are off by"):
        load(tiny())


NOISY: dict[str, PretrainedConfig] = {
    "deep": transformers.LlamaConfig(**{**SMALL, "hidden_size": 128, "num_hidden_layers": 24}, **WIDTHS, **KV),
    "experts": transformers.MixtralConfig(
        **{**SMALL, "hidden_size": 128, "num_hidden_layers": 8}, **WIDTHS, **KV, num_local_experts=8
    ),
}


@pytest.mark.parametrize("kind", NOISY)
def test_the_rounding_of_bfloat16_is_no_reason_to_refuse(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It adds up over layers and sends tokens to other experts; wrong attention still shows."""
    torch.manual_seed(0)
    NOISY[kind].initializer_range = 0.1
    AutoModelForCausalLM.from_config(NOISY[kind], dtype=torch.bfloat16).save_pretrained(tmp_path)
    load(tmp_path, dtype="bfloat16")
    plain = attention_module.attend_prefill
    monkeypatch.setattr(
        attention_module, "attend_prefill", lambda *a: plain(*a[:4], replace(a[4], scale=a[4].scale * 2))
    )
    with pytest.raises(UnservableModel, match="are off by"):
        load(tmp_path, dtype="bfloat16")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnservableModel, match="transformers finds no model"):
        load(tmp_path)


def test_weights_that_are_no_numbers_are_named(tiny: Tiny) -> None:
    folder = tiny()
    model = AutoModelForCausalLM.from_pretrained(folder).requires_grad_(False)
    model.model.layers[1].mlp.down_proj.weight[3, 5] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(UnservableModel, match=r"NaN or infinite: model\.layers\.1\.mlp\.down_proj\.weight hold"):
        load(folder)


# Weights in other forms


@pytest.mark.parametrize("form", ["class", "tensor", "hook", "inputs"])
def test_the_twin_of_a_quantised_model_runs_as_it_does(
    oracle: ModuleType, tiny: Tiny, tmp_path: Path, form: str
) -> None:
    loaded = load(oracle.quantised_model(tiny(), tmp_path, form)[0], dtype="float32")
    assert loaded.twin_runs
    assert loaded.dtype == torch.float32
    own, twins = ([*model.parameters()] for model in (loaded.model, loaded.twin))
    assert all(a is b for a, b in zip(own, twins, strict=True))
    assert not any(p.is_inference() or p.requires_grad for p in own)
    fused = fuse_siblings(loaded.modules, loaded.sites.groups)
    assert not fused
    with torch.no_grad():
        logits = loaded.twin(loaded.trace.token_ids[None]).logits[0]
    torch.testing.assert_close(logits, loaded.trace.logits)


def test_a_twin_that_computes_something_else_is_told(
    oracle: ModuleType, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a module's own `forward` holds on to the module that it was made for."""
    plain = loading.read_model

    def read_model(*arguments: Any) -> Any:
        model = plain(*arguments)
        for module in (layer.mlp for layer in model.model.layers):
            module.forward = partial(lambda forward, x: 2 * forward(x), module.forward).__call__
            module.forward = (lambda forward: lambda x: forward(x))(module.forward)
        return model

    monkeypatch.setattr(loading, "read_model", read_model)
    assert not load(tiny()).twin_runs


def test_the_model_is_frozen_and_in_evaluation(tiny: Tiny) -> None:
    model = load(tiny(attention_dropout=0.5)).model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


# Length


@pytest.mark.parametrize(("asked", "expected"), [(None, 256), (100, 100), (256, 256), (8, 8)])
def test_the_length_is_the_positions_or_what_is_asked(tiny: Tiny, asked: int | None, expected: int) -> None:
    assert load(tiny(), max_model_len=asked).max_model_len == expected


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_more_than_the_positions_is_refused(tiny: Tiny, architecture: str) -> None:
    with pytest.raises(UnservableModel, match="--max-model-len 257 is more than the 256 positions"):
        load(tiny(architecture), max_model_len=257)


def longrope(original: int) -> dict[str, Any]:
    return {
        "max_position_embeddings": 256,
        "original_max_position_embeddings": original,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
            "original_max_position_embeddings": original,
        },
    }


def test_longrope_is_served_up_to_its_original_length(tiny: Tiny) -> None:
    folder = tiny("phi3", **longrope(64))
    assert load(folder).max_model_len == 64
    with pytest.raises(UnservableModel, match="--max-model-len 128 is more than the 64 positions"):
        load(folder, max_model_len=128)


# What is read of the model


def test_the_trace_is_what_transformers_gives(tiny: Tiny) -> None:
    folder = tiny()
    loaded = load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.inference_mode():
        expected = model(loaded.trace.token_ids[None]).logits[0]
    torch.testing.assert_close(loaded.trace.logits, expected)
    assert sorted(loaded.attention.layers) == [0, 1]
    assert vocabulary_size(loaded.model) == 300
