"""Norms inside modules that keep state: those whose rows are tokens in their order are found, with their inputs."""

from pathlib import Path
from types import ModuleType

import torch

from peftserve.server.engine.model.state.norms import find_norms
from peftserve.server.engine.model.wrapped_module import side_by_side

TOKENS = torch.arange(9, 23)


def test_norms_of_mixers_are_found_with_their_inputs(oracle: ModuleType, tmp_path: Path) -> None:
    """One with a gate, which sees the heads of all tokens as rows; and three without, beside one that is not inside."""
    delta = oracle.plain_model(oracle.tiny_model("qwen3_5_text", 0, tmp_path / "delta"))
    found = find_norms(delta, TOKENS, lambda name: "linear_attn." in name)
    assert found == {f"model.layers.{i}.linear_attn.norm": 2 for i in (0, 2)}
    mamba = oracle.plain_model(oracle.tiny_model("jamba", 0, tmp_path / "mamba"))
    found = find_norms(mamba, TOKENS, lambda name: "mamba." in name)
    assert found == {f"model.layers.0.mamba.{name}_layernorm": 1 for name in ("dt", "b", "c")}
    assert find_norms(mamba, TOKENS, lambda _: False) == {}


def test_one_that_mixes_tokens_or_has_them_in_another_order_is_not_found(oracle: ModuleType, tmp_path: Path) -> None:
    model = oracle.plain_model(oracle.tiny_model("qwen3_5_text", 0, tmp_path / "model"))
    norm = model.model.layers[2].linear_attn.norm
    handle = norm.register_forward_pre_hook(lambda _, args: tuple(x.flip(0) for x in args))
    found = find_norms(model, TOKENS, lambda name: "linear_attn." in name)
    assert found == {"model.layers.0.linear_attn.norm": 2}, "rows of the last token come first in the other"
    handle.remove()
    norm.register_forward_pre_hook(lambda _, args: tuple(x + x.mean(0) for x in args))
    assert "model.layers.2.linear_attn.norm" not in find_norms(model, TOKENS, lambda name: "linear_attn." in name)


def test_a_norm_of_two_inputs_is_a_function_of_both_side_by_side() -> None:
    x, gate = torch.randn(3, 4), torch.randn(3, 4)
    joined = side_by_side(lambda x, gate: x * gate, 2)(torch.cat([x, gate], -1))
    assert torch.equal(joined, x * gate)
