"""Which modules keep state, and how, is found out for whatever model."""

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from peftserve.adapters.bypass import StateKey
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.model.state.tracing import TracedStates, trace_states
from peftserve.server.engine.private.own_state_private import keep_states_in_a_cache

IDS = torch.arange(3, 27)


def traced(oracle: ModuleType, name: str, folder: Path) -> TracedStates:
    model = oracle.plain_model(oracle.tiny_model(name, 0, folder))
    return trace_states(model, IDS)


def test_mixers_of_some_layers_with_two_kinds_of_state(oracle: ModuleType, tmp_path: Path) -> None:
    found = traced(oracle, "qwen3_5_text", tmp_path)
    assert [mixer.name for mixer in found.mixers] == ["model.layers.0.linear_attn", "model.layers.2.linear_attn"]
    assert {mixer.argument for mixer in found.mixers} == {"cache_params"}
    assert found.shapes is not None
    assert found.shapes[StateKey("recurrent", 2, 0)].shape == (4, 16, 16)
    assert found.shapes.keys() == {StateKey(kind, layer, 0) for kind in ("conv", "recurrent") for layer in (0, 2)}
    assert found.bytes_per_sequence == 2 * 4 * (4 * 16 * 16 + 128 * 4)
    assert found.inside("model.layers.2.linear_attn.out_proj")
    assert not found.inside("model.layers.1.self_attn.q_proj")


@pytest.mark.parametrize(("name", "forget"), [("lfm2", False), ("mamba2", False), ("mamba", True), ("jamba", True)])
def test_mixers_that_begin_anew_at_a_chunk_are_told_by_what_reaches_their_outputs(
    oracle: ModuleType, name: str, forget: bool, tmp_path: Path
) -> None:
    found = traced(oracle, name, tmp_path)
    assert found.mixers
    assert {mixer.forgets for mixer in found.mixers} == {forget}


def test_outputs_are_described_but_for_what_is_not_by_token(oracle: ModuleType, tmp_path: Path) -> None:
    (first, *_), (mixer, *_) = (traced(oracle, name, tmp_path / name).mixers for name in ("zaya", "minimax"))
    assert [output.shape for output in first.returned] == [(4, 16), (2, 16), (2, 16)]
    assert mixer.in_tuple
    assert [output is None for output in mixer.outputs] == [False, True]


def test_a_mixer_that_is_given_what_is_not_by_token_is_refused(oracle: ModuleType, tmp_path: Path) -> None:
    """Its rows could not be told from a step's, wherever a step has as many."""
    model = oracle.plain_model(oracle.tiny_model("qwen3_5_text", 0, tmp_path))
    mixer = model.model.layers[0].linear_attn
    forward, table = mixer.forward, torch.zeros(1, 7, 3)
    mixer.forward = lambda *args, table, **kwargs: forward(*args, **kwargs)
    mixer.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "table": table}), with_kwargs=True, prepend=True
    )
    with pytest.raises(UnservableModel, match="not by tokens"):
        trace_states(model, IDS)


def test_a_model_of_attention_alone_keeps_nothing(oracle: ModuleType, tmp_path: Path) -> None:
    assert traced(oracle, "llama", tmp_path) == TracedStates()


SMALL: dict[str, Any] = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3}


def test_state_in_modules_of_a_models_own_is_refused() -> None:
    """Until these modules are made to keep it in a cache."""
    sizes: dict[str, Any] = {"intermediate_size": 48, "num_attention_heads": 2, "lru_width": 32, "pad_token_id": 0}
    model = transformers.AutoModelForCausalLM.from_config(transformers.RecurrentGemmaConfig(**SMALL, **sizes))
    with pytest.raises(UnservableModel, match="modules of its own"):
        trace_states(model, IDS)
    keep_states_in_a_cache(model)
    assert [(mixer.name, mixer.forgets) for mixer in trace_states(model, IDS).mixers] == [
        (f"model.layers.{layer}.temporal_block", True) for layer in (0, 1)
    ]
