"""The positions of a step's rows, for attention that takes its rows for the newest of one sequence.

Llama 4 scales queries by their positions (attention temperature tuning, arXiv:2501.19399), which it counts from the
length of its cache on. Here a step's rows are of many sequences, and the cache is behind the attention function. So its
layers are given in place of a cache what makes them count right.
"""

from typing import Any, NamedTuple

import torch
from torch import nn


class RowPositions(NamedTuple):
    """Stands where a layer expects a cache. position_ids: (1, rows)."""

    position_ids: torch.Tensor

    def get_seq_length(self, layer_idx: int = 0) -> torch.Tensor:
        """Return, (rows,), what added to the number of each row in the step is its position."""
        positions = self.position_ids[0]
        return positions - torch.arange(len(positions), device=positions.device)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the step's own keys and values: those before it are where the attention function finds them."""
        return key, value


def pass_row_positions(model: nn.Module) -> None:
    """Let those layers of a model that scale queries by positions know the positions of a step's rows."""
    for layer in model.modules():
        if getattr(getattr(layer, "self_attn", None), "attn_temperature_tuning", False):
            layer.register_forward_pre_hook(_pass, with_kwargs=True)


def _pass(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"past_key_values": RowPositions(kwargs["position_ids"])}
