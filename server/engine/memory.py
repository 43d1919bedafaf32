"""Free memory, and the share of it that the KV cache gets when the operator does not say."""

import ctypes
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from peftserve.kernels.attention.layout import AttentionLayer

from ..config import EngineConfig
from .model.kv_cache import elements_per_token

logger = logging.getLogger(__name__)

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_DONT_NEED = 4  # MADV_DONTNEED of madvise(2), which for a file that is only read loses nothing
_KV_SHARE = {"cuda": 0.9, "cpu": 0.3}
_STATE_SHARE = 0.3  # for states, beside which a hybrid model needs pages


def free_bytes(device: torch.device) -> int:
    """Return the bytes that can be allocated now: the GPU's, or the machine's within its container's limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.exists() else "max"
    return available if limit == "max" else min(available, int(limit))


def mapped_ranges(suffix: str) -> list[tuple[int, int]]:
    """Return the addresses at which files of that name are mapped; none where the system does not say."""
    maps = Path("/proc/self/maps")
    lines = [line.split(maxsplit=5) for line in maps.read_text().splitlines()] if maps.exists() else []
    places = [fields[0].split("-") for fields in lines if fields[-1].removesuffix(" (deleted)").endswith(suffix)]
    return [(int(start, 16), int(end, 16)) for start, end in places]


def let_go_of_files(suffix: str) -> None:
    """Let the system take back the pages of mapped files of that name, which are read again where they are needed.

    Nothing may have been written to them.
    """
    for start, end in mapped_ranges(suffix):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONT_NEED)


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
    fitting = int(free_bytes(device) * _KV_SHARE[device.type]) // max(page_bytes, 1)  # without attention: of nothing
    return max(min(fitting, -(-max_tokens // page_size)), 1)


class StateSlots(NamedTuple):
    """How many slots of state there are. sequences: of those that run at once. snapshots: behind known prefixes."""

    sequences: int
    snapshots: int


def state_slots(config: EngineConfig, bytes_per_sequence: int, device: torch.device) -> StateSlots:
    """Divide memory into slots of what the model keeps of a sequence beside pages.

    There are `max_running` for sequences, or as many as fit, and up to as many again for snapshots.
    """
    if not bytes_per_sequence:
        return StateSlots(config.max_running, 0)
    fitting = max(int(free_bytes(device) * _STATE_SHARE) // bytes_per_sequence, 1)
    sequences = min(config.max_running, fitting)
    if sequences < config.max_running:
        logger.warning(
            "only %d sequences run at once, not %d: the model keeps %d bytes of state for each",
            sequences,
            config.max_running,
            bytes_per_sequence,
        )
    return StateSlots(sequences, min(fitting - sequences, config.max_running) if config.prefix_caching else 0)
