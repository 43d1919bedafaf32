"""How many programs of a kernel are on a multiprocessor at once: those of one launch wait for each other."""

from typing import Any, NamedTuple

import torch

_RESERVED_SHARED = 1024  # bytes that CUDA itself takes for each program


class Multiprocessor(NamedTuple):
    """registers: of 32 bits. shared: bytes. threads: most at once."""

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
    p = torch.cuda.get_device_properties(device)
    registers: int = getattr(p, "regs_per_multiprocessor", 65536)  # torch's own annotations lack it
    return Multiprocessor(registers, p.shared_memory_per_multiprocessor, p.max_threads_per_multi_processor)


def resources(kernel: Any) -> Resources:
    """kernel: as triton compiled and loaded it."""
    threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
    return Resources(threads, kernel.n_regs, kernel.n_spills, kernel.metadata.shared)


def programs_at_once(taken: Resources, there: Multiprocessor) -> int:
    by_registers = there.registers // (max(taken.registers, 1) * taken.threads)
    by_shared = there.shared // (taken.shared + _RESERVED_SHARED)
    return min(by_registers, by_shared, there.threads // taken.threads)


def multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
