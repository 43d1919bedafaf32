"""What the kernels use of triton beyond its documentation. Imported on machines with a GPU alone.

`NAMES` also has the options of the compiler and the intrinsics that launches and kernels name themselves.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from triton.testing import get_dram_gbps

_EARLY = (
    "Launches that begin before the kernel ahead has ended (`bypass/triton/options.py`, `records.py`). Without it "
    "designs are not `early`, and each launch costs a microsecond more."
)
_FUSION = (
    "Products and sums as one instruction with one rounding, which is the compiler's default where it is not said."
)

NAMES: Mapping[str, str] = {
    "triton.testing.get_dram_gbps": (
        "The bandwidth of a device's memory by its clock and its bus (`memory_bandwidth`), for the model that chooses "
        "designs. torch has the same numbers as `memory_clock_rate` and `memory_bus_width` of a device's properties."
    ),
    "triton.compiler.CompiledKernel": (
        "What a launch returns. Its `n_regs`, `n_spills` and `metadata` say what a program takes of a multiprocessor "
        "(`figures_of`). `cuobjdump --dump-resource-usage` prints the same of a cubin. Without either, attention "
        "launches as many programs as its tiles are made for, as it does in the interpreter."
    ),
    "triton.backends.nvidia.compiler.CUDAOptions.launch_pdl": _EARLY,
    "triton.language.extra.cuda.gdc_wait": _EARLY,
    "triton.language.extra.cuda.gdc_launch_dependents": _EARLY,
    "triton.backends.nvidia.compiler.CUDAOptions.maxnreg": (
        "The most registers of a thread of expand (`bypass/triton/options.py`). Without it fewer programs are on a "
        "multiprocessor at once. An option that triton does not know is dropped without a word where it compiles."
    ),
    "triton.backends.nvidia.compiler.CUDAOptions.enable_fp_fusion": _FUSION,
    "triton.backends.amd.compiler.HIPOptions.enable_fp_fusion": _FUSION,
}


class Figures(NamedTuple):
    """What the compiler says of a kernel. registers, spilled: of each thread. shared: bytes of each program."""

    threads: int
    registers: int
    spilled: int
    shared: int


def figures_of(kernel: Any) -> Figures:
    """Return what a program of a kernel takes. kernel: as triton compiled it and loaded it to the current device."""
    metadata = kernel.metadata
    threads = metadata.num_warps * metadata.target.warp_size
    return Figures(threads, kernel.n_regs, kernel.n_spills, metadata.shared)


def memory_bandwidth(device: int) -> float:
    """Return the bytes a second that a device's memory moves by its clock; 0 where the driver does not know it."""
    bandwidth: float = get_dram_gbps(device) * 1e9
    return bandwidth
