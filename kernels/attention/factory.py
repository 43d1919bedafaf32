"""Chooses the implementation of paged attention for a device."""

from collections.abc import Sequence

import torch

from ..device.step_memory import StepMemory
from .flash.calls import supports, torch_flash
from .layout import AttentionBackend, AttentionLayer, Limits
from .torch.backend import TorchAttention

GATHERED_BYTES = 128 << 20  # of one layer's keys and values, most: 32,768 tokens of Llama-3.1-8B


def make_attention_backend(
    layers: Sequence[AttentionLayer],
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    memory: StepMemory | None = None,
    spare_bytes: int = 0,
) -> AttentionBackend:
    """Make the backend for a model's layers on a device.

    layers: by the index that `attend` is given. page_size: on GPUs a power of two. dtype: of the caches. limits: of all
    steps. memory: in which a GPU is sent the metadata of each step, by the caller; without one `begin` sends it.
    spare_bytes: of memory for copies of keys and values, on a CPU, where they make it faster.
    """
    if device.type == "cuda":
        return _on_gpu(tuple(layers), page_size, dtype, device, limits, memory)
    return TorchAttention(layers, page_size, dtype, device, spare_bytes)


def _on_gpu(
    layers: Sequence[AttentionLayer],
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    memory: StepMemory | None = None,
) -> AttentionBackend:
    """Make the backend of a GPU, with flash kernels for long spans if they exist and are faster."""
    from .flash.backend import MixedAttention
    from .flash.choice import choose_least_rows
    from .triton.backend import TritonAttention
    from .triton.resident import resident_programs  # not on machines without a GPU, which need no triton

    resident = resident_programs(layers, page_size, dtype, device)
    flash = torch_flash(dtype, device)
    assisted = [index for index, layer in enumerate(layers) if flash is not None and supports(layer)]
    least = None
    if flash is not None and assisted:
        least = choose_least_rows([layers[index] for index in assisted], page_size, dtype, device, flash)
    if flash is None or least is None:
        return TritonAttention(layers, page_size, dtype, device, limits, resident=resident, memory=memory)
    widest = max(layers[index].kv_heads * layers[index].key_dim for index in assisted)
    most_keys = min(limits.positions + limits.rows, GATHERED_BYTES // (2 * widest * dtype.itemsize))
    own = TritonAttention(layers, page_size, dtype, device, limits, assisted=assisted, resident=resident, memory=memory)
    return MixedAttention(own, flash, layers, assisted, page_size, dtype, device, least_rows=least, most_keys=most_keys)
