"""Where bases are cut, by transformers' plan and by what is known of heads and packed parts."""

from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.server.engine.model.errors import UnservableModel
from peftserve.server.engine.parallel.plan import plan_cuts


def base(oracle: ModuleType, architecture: str, **overrides: Any) -> tuple[Any, dict[int, AttentionLayer]]:
    """Return a model without weights, and its attention as a pass would find it."""
    config = oracle.ARCHITECTURES[architecture](**overrides)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    layer = AttentionLayer(heads, kv_heads, dim, dim, dim**-0.5)
    return model, dict.fromkeys(range(config.num_hidden_layers), layer)


def test_a_llama_is_cut_by_heads_and_by_the_width_of_its_networks(oracle: ModuleType) -> None:
    model, layers = base(oracle, "llama")
    plan = plan_cuts(model, layers, 2)
    stem = "model.layers.1"
    q, k = (plan.cuts[f"{stem}.self_attn.{name}_proj"].outputs for name in "qk")
    assert q is not None
    assert k is not None
    assert (q[1].tolist(), k[1].tolist()) == ([*range(32, 64)], [*range(16, 32)])
    assert plan.cuts[f"{stem}.mlp.down_proj"].inputs is not None
    assert plan.added == {f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.o_proj", "mlp.down_proj")}
    assert plan.attention == {"model.layers.0.self_attn", "model.layers.1.self_attn"}


def test_kv_heads_are_shared_where_there_are_fewer_than_ranks(oracle: ModuleType) -> None:
    model, layers = base(oracle, "llama")
    k = plan_cuts(model, layers, 4).cuts["model.layers.0.self_attn.k_proj"].outputs
    assert k is not None
    assert [own[0].item() for own in k] == [0, 0, 16, 16]


def test_packed_weights_are_cut_part_by_part(oracle: ModuleType) -> None:
    model, layers = base(oracle, "phi3")
    plan = plan_cuts(model, layers, 2)
    qkv = plan.cuts["model.layers.0.self_attn.qkv_proj"].outputs
    gate_up = plan.cuts["model.layers.0.mlp.gate_up_proj"].outputs
    assert qkv is not None
    assert gate_up is not None
    assert qkv[0].tolist() == [*range(32), *range(64, 80), *range(96, 112)]
    assert gate_up[1].tolist() == [*range(48, 96), *range(144, 192)]


def test_experts_are_cut_inside(oracle: ModuleType) -> None:
    model, layers = base(oracle, "mixtral")
    plan = plan_cuts(model, layers, 2)
    up = plan.cuts["model.layers.0.mlp.experts.gate_up_proj"].outputs
    assert up is not None
    assert up[0].tolist() == [*range(48), *range(96, 144)]
    assert plan.cuts["model.layers.0.mlp.experts.down_proj"].inputs is not None
    assert "model.layers.0.mlp.experts" in plan.added


@pytest.mark.parametrize(
    ("architecture", "ranks", "overrides", "said"),
    [
        ("gpt2", 2, {}, "no plan of tensor parallel for GPT2LMHeadModel"),
        ("llama", 3, {}, "attention heads, those of model.layers.0.self_attn.q_proj cannot be divided among 3 ranks"),
        ("llama", 2, {"intermediate_size": 95}, "the 95 features of .*mlp.gate_proj cannot be divided among 2 ranks"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_reason(
    oracle: ModuleType, architecture: str, ranks: int, overrides: dict[str, int], said: str
) -> None:
    model, layers = base(oracle, architecture, **overrides)
    with pytest.raises(UnservableModel, match=said):
        plan_cuts(model, layers, ranks)


def test_sinks_are_refused(oracle: ModuleType) -> None:
    model, _ = base(oracle, "gpt_oss")
    layer = AttentionLayer(4, 2, 32, 32, 1.0, sinks=True)
    with pytest.raises(UnservableModel, match="sinks"):
        plan_cuts(model, {0: layer, 1: layer}, 2)
