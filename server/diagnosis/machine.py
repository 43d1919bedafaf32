"""The device, memory and compiler that a server would find here, as plain values for those who may not know torch."""

from dataclasses import dataclass

import torch

from peftserve.kernels.bypass.cpp.compiler import CannotCompile, find_compiler

from ..engine.memory import free_bytes


@dataclass(frozen=True)
class Machine:
    """What there is. device: `cuda` or `cpu`, as the server would choose. free, total: bytes of its memory.

    name: the GPU's, empty on a CPU. has_device: whether torch can use it. threads: torch's, on a CPU. compiler: that of
    C++, if there is one.
    """

    device: str
    has_device: bool
    name: str
    threads: int
    free: int
    total: int
    compiler: str | None


def look(asked: str) -> Machine:
    """Look at the machine. asked: `auto`, `cpu` or `cuda`."""
    has_gpu = torch.cuda.is_available()
    device = "cuda" if asked == "cuda" or (asked == "auto" and has_gpu) else "cpu"
    is_there = device == "cpu" or has_gpu
    free, total = (0, 0) if not is_there else _memory(device)
    name = torch.cuda.get_device_name() if device == "cuda" and has_gpu else ""
    return Machine(device, is_there, name, torch.get_num_threads(), free, total, _compiler())


def _memory(device: str) -> tuple[int, int]:
    free = free_bytes(torch.device(device))
    return free, torch.cuda.mem_get_info()[1] if device == "cuda" else free


def _compiler() -> str | None:
    try:
        return find_compiler()
    except CannotCompile:
        return None
