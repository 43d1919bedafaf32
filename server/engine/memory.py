"""Free memory, and the share of it that the KV cache gets when the operator does not say."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch

from peftserve.kernels.attention.layout import AttentionLayer

from .model.kv_cache import elements_per_token

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_KV_SHARE = {"cuda": 0.9, "cpu": 0.3}


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated now: the GPU's, or the machine's within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return available if limit == "max" else min(available, int(limit))


def allocated_bytes(device: torch.device) -> int:
    """Return the bytes of all tensors on a GPU; 0 on a CPU, where torch does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def give_back_free_memory() -> None:
    """Give back to the system what the C library keeps for later, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def kv_pages(
    asked_tokens: int | None,
    layers: Mapping[int, AttentionLayer],
    *,
    page_size: int,
    max_tokens: int,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Return the number of the cache's pages: as asked, else what fits the free memory, at most for `max_tokens`."""
    if asked_tokens is not None:
        return max(asked_tokens // page_size, 1)
    page_bytes = page_size * dtype.itemsize * sum(map(elements_per_token, layers.values()))
    fitting = int(free_bytes(device) * _KV_SHARE[device.type]) // page_bytes
    return max(min(fitting, -(-max_tokens // page_size)), 1)
