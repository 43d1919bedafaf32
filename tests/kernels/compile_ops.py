"""The kernels of the primitives beside the low-rank bypass, compiled for `compile_kernels.py`."""

from collections.abc import Iterator, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from peftserve.kernels.ops.triton import kernels
from peftserve.kernels.ops.triton.launches import KRONECKER, PAIRS, ROTATION, SPARSE

KERNELS: Mapping[str, tuple[Any, Mapping[str, int]]] = {
    "rotation": (kernels.rotation_kernel, ROTATION),
    "pairs": (kernels.pair_kernel, PAIRS),
    "sparse": (kernels.sparse_kernel, SPARSE),
    "kronecker": (kernels.kronecker_kernel, KRONECKER),
}
POINTERS = {"list_ptr": "*i64", "ints_ptr": "*i32"}


def compile_op(name: str, dtype: str, target: GPUTarget) -> Any:
    kernel, options = KERNELS[name]
    constants = {key: value for key, value in options.items() if key.isupper()}
    signature = {
        arg: "constexpr" if arg in constants else POINTERS.get(arg, f"*{dtype}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith(("_ptr", "_stride"))
    }
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=target, options={k: v for k, v in options.items() if k not in constants})


def op_entries(target_name: str, target: GPUTarget) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield each compiled kernel, and its entry without what the compiler reports."""
    for name, (_, options) in KERNELS.items():
        for dtype in ("bf16", "fp32") if target_name == "sm_90" else ("bf16",):
            compiled = compile_op(name, dtype, target)
            threads = options["num_warps"] * target.warp_size
            what = {"target": target_name, "blocks": name, "mode": "primitives", "dtype": dtype, "threads": threads}
            yield compiled, {**what, "programs": 1, "shared": compiled.metadata.shared}
