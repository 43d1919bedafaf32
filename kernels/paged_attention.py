"""Picks the implementation of paged attention for a device."""

from collections.abc import Sequence

import torch

from .attention import AttentionBackend, AttentionLayer, Limits
from .step_memory import StepMemory
from .torch_attention import TorchAttention


def make_attention_backend(
    layers: Sequence[AttentionLayer],
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    memory: StepMemory,
    spare_bytes: int = 0,
) -> AttentionBackend:
    """layers: of the model, by the index that `attend` is given. page_size: on GPUs a power of two.

    dtype: of the caches. limits: of all steps. memory: for what a GPU is told of each, which whoever launches sends.
    spare_bytes: of memory for copies of keys and values, where they make it faster.
    """
    if device.type == "cuda":
        from .triton_attention import TritonAttention  # not on machines without a GPU, which need no triton

        return TritonAttention(layers, page_size, dtype, device, limits, memory=memory)
    return TorchAttention(layers, page_size, dtype, device, spare_bytes)
