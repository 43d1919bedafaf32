"""What the kernels use of torch beyond its documentation."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

import torch

REGISTERS = 65536  # of 32 bits, that a multiprocessor of NVIDIA has

OF_DEVICE = "torch._C._CudaDeviceProperties"

NAMES: Mapping[str, str] = {
    "torch/lib/libtorch_cpu.so": (
        "The library of torch's operators, and in it the functions of the OpenMP runtime that it is linked with: the "
        "compiled loop of the bypasses runs on the same threads (`openmp_function`). Without it the loop runs on one."
    ),
    f"{OF_DEVICE}.regs_per_multiprocessor": (
        "Registers of a multiprocessor, by which designs and grids are chosen (`registers_of`). torch neither "
        "documents nor annotates it. Without it all are taken to have 65,536, as all of NVIDIA that are supported do."
    ),
    f"{OF_DEVICE}.shared_memory_per_block_optin": (
        "Bytes of shared memory that one program may take (`shared_memory_of`), as little documented. Without it what "
        "a multiprocessor has in all is taken, and a design that needs the last KiB fails when it is compiled."
    ),
}


def library() -> Path:
    """Return the shared library of torch's operators on a CPU, which may not be there."""
    return Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"


def openmp_function(name: str) -> int:
    """Return the address of a function of the OpenMP runtime that torch is linked with.

    Raises OSError if the library cannot be loaded, AttributeError if it has no such function.
    """
    return ctypes.cast(getattr(ctypes.CDLL(str(library())), name), ctypes.c_void_p).value or 0


def registers_of(device: torch.device) -> int:
    """Return the registers, of 32 bits, of one multiprocessor."""
    count: int = getattr(torch.cuda.get_device_properties(device), "regs_per_multiprocessor", REGISTERS)
    return count


def shared_memory_of(device: torch.device) -> int:
    """Return the most bytes of shared memory that a program may ask for."""
    properties = torch.cuda.get_device_properties(device)
    num_bytes: int = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_multiprocessor)
    return num_bytes
