"""Compiles the Triton kernels of the bypasses for every GPU served and prints one JSON object a line.

Run by test_triton_kernels.py in a process of its own, since triton either interprets kernels or compiles them.
"""

import json
import re
import subprocess
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from peftserve.kernels.triton_kernels import (
    BLOCK_K_BYTES,
    BLOCK_N,
    EXPAND_STAGES,
    SHRINK_STAGES,
    expand_kernel,
    gather_kernel,
    options,
    shrink_kernel,
)

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {
    "shrink": (shrink_kernel, SHRINK_STAGES),
    "gather": (gather_kernel, SHRINK_STAGES),
    "expand": (expand_kernel, EXPAND_STAGES),
}
VARIANTS = [
    *[("shrink", "bf16", block_m, block_r) for block_m, block_r in ((1, 32), (16, 32), (64, 64))],
    *[("expand", "bf16", block_m, 32) for block_m in (1, 16, 64)],
    ("shrink", "fp32", 64, 64),
    ("expand", "fp32", 64, 32),
    ("gather", "bf16", 64, 64),
]
POINTERS = {"h_ptr": "*fp32", "table_ptr": "*i64", "entries_ptr": "*i32", "tiles_ptr": "*i32", "ids_ptr": "*i64"}


def compile_kernel(name: str, dtype: str, block_m: int, block_r: int, target: GPUTarget) -> Any:
    kernel, stages = KERNELS[name]
    block_k = BLOCK_K_BYTES // (2 if dtype == "bf16" else 4)
    values = {"SPLIT": 4, "ALIGN": 8, "BLOCK_M": block_m, "BLOCK_R": block_r, "BLOCK_K": block_k, "BLOCK_N": BLOCK_N}
    constants = {arg: values[arg] for arg in kernel.arg_names if arg in values}
    signature = {
        arg: "constexpr" if arg in constants else POINTERS.get(arg, f"*{dtype}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
    }
    # What the launcher finds in practice: pointers and widths are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if arg.endswith(("_ptr", "_stride", "_features"))
    }
    return triton.compile(
        ASTSource(kernel, signature, constants, aligned), target=target, options=options(block_m, stages)
    )


def spilled(compiled: Any) -> int:
    """Bytes of local memory (CUDA) or registers (ROCm) that each thread spills."""
    if "amdgcn" in compiled.asm:
        return sum(map(int, re.findall(r"[sv]gpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(map(int, re.findall(r"\b(?:STACK|LOCAL):(\d+)", usage)))


def main() -> None:
    for target_name, target in TARGETS.items():
        for name, dtype, block_m, block_r in VARIANTS:
            compiled = compile_kernel(name, dtype, block_m, block_r, target)
            found = {"shared": compiled.metadata.shared, "spilled": spilled(compiled)}
            print(json.dumps({"kernel": f"{name} {dtype} {block_m}", "target": target_name, **found}))


if __name__ == "__main__":
    main()
