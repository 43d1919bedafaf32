"""A run of the base over embeddings, for the keys and values in its cache. Knows no methods and no checkpoints."""

from typing import Any

import torch
from transformers import DynamicCache

from .plain import device_of

Layer = tuple[torch.Tensor, torch.Tensor]


def prefill(model: Any, embeddings: torch.Tensor) -> dict[int, Layer]:
    """Run the base over embeddings (n, width) at positions 0 to n - 1.

    Returns layer to keys and values, each (n, kv heads, dim) on the CPU. The cache is made without a configuration, so
    that it keeps all keys of sliding layers too, whose mask is the base's own. The head does not run.
    """
    device = device_of(model.get_input_embeddings())
    cache = DynamicCache()
    with torch.inference_mode():
        model.eval().base_model(
            inputs_embeds=embeddings.to(device)[None],
            attention_mask=torch.ones(1, embeddings.shape[0], dtype=torch.int64, device=device),
            past_key_values=cache,
            use_cache=True,
        )
    layers: Any = cache.layers
    filled = ((i, layer) for i, layer in enumerate(layers) if layer.get_seq_length())
    return {i: (_rows(layer.keys), _rows(layer.values)) for i, layer in filled}


def _rows(cached: torch.Tensor) -> torch.Tensor:
    """Return (1, heads, n, dim) as (n, heads, dim), an ordinary tensor again."""
    with torch.inference_mode(False):
        return cached[0].clone().transpose(0, 1).cpu().contiguous()
