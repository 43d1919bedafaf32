"""Rows of many sequences are scaled by their own positions, as if each sequence were alone."""

from types import ModuleType

import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from peftserve.server.engine.model.row_positions import RowPositions, pass_row_positions


def test_the_number_of_a_row_and_its_length_are_its_position() -> None:
    positions = torch.tensor([[7, 0, 1, 2, 40]])
    rows = RowPositions(positions)
    assert (torch.arange(5) + rows.get_seq_length(3)).tolist() == positions[0].tolist()
    key, value = torch.zeros(1, 2, 5, 4), torch.ones(1, 2, 5, 3)
    assert rows.update(key, value, 3) == (key, value)


@torch.no_grad()
def test_llama_4_scales_queries_by_positions(oracle: ModuleType) -> None:
    """Queries of the last layer, which has no rotary positions: the same token at other places of a step."""
    config = oracle.ARCHITECTURES["llama4"](no_rope_layers=[0, 0, 0], moe_layers=[])
    model = AutoModelForCausalLM.from_config(config).eval()
    pass_row_positions(model)
    seen: list[torch.Tensor] = []

    def attend(module: object, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object):  # type: ignore[no-untyped-def]
        seen.append(query[0].transpose(0, 1))
        return torch.zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register("row_positions_test", attend)
    model.set_attn_implementation("row_positions_test")
    positions = torch.tensor([[30, 0, 30, 9]])
    model(input_ids=torch.full((1, 4), 9), position_ids=positions, use_cache=False)
    scales = torch.log1p(torch.floor((positions[0] + 1.0) / config.floor_scale)) * config.attn_scale + 1
    for query in seen:
        plain = query / scales[:, None, None]
        torch.testing.assert_close(plain, plain[:1].expand_as(plain))
    assert len(seen) == 3
    assert scales.unique().numel() == 3
