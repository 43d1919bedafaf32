"""How many programs of a kernel are on a multiprocessor at once."""

from typing import Any, NamedTuple

import torch

from ..private.torch_private import registers_of

_RESERVED_SHARED = 1024  # bytes that CUDA itself takes for each program


class Multiprocessor(NamedTuple):
    """What a multiprocessor has. registers: of 32 bits. shared: bytes. threads: most at once."""

    registers: int
    shared: int
    threads: int


class Resources(NamedTuple):
    """What a program takes. registers: of each thread. spilled: of each thread, in memory. shared: bytes."""

    threads: int
    registers: int
    spilled: int
    shared: int


def multiprocessor(device: torch.device) -> Multiprocessor:
    """Describe the device's multiprocessors."""
    p = torch.cuda.get_device_properties(device)
    return Multiprocessor(registers_of(device), p.shared_memory_per_multiprocessor, p.max_threads_per_multi_processor)


def resources(kernel: Any) -> Resources:
    """Return what a program of a kernel takes. kernel: as triton compiled and loaded it."""
    from ..private.triton_private import figures_of  # not on machines without a GPU, which need no triton

    return Resources(*figures_of(kernel))


def programs_at_once(taken: Resources, there: Multiprocessor) -> int:
    """Return how many programs fit; whatever runs out first decides."""
    by_registers = there.registers // (max(taken.registers, 1) * taken.threads)
    by_shared = there.shared // (taken.shared + _RESERVED_SHARED)
    return min(by_registers, by_shared, there.threads // taken.threads)


def multiprocessors(device: torch.device) -> int:
    """Count the device's multiprocessors; 1 for a CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
