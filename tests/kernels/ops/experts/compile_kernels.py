"""Compiles the experts' kernels for each GPU served, for `tests/kernels/compile_kernels.py`."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from peftserve.kernels.ops.experts.triton_backend import (
    ALIGNMENT,
    FEW_ROWS,
    MANY_ROWS,
    expand_options,
    shrink_options,
)
from peftserve.kernels.ops.experts.triton_kernels import expert_expand_kernel, expert_shrink_kernel
from peftserve.kernels.ops.experts.triton_sort import BLOCK, WARPS, place_kernel, tile_kernel

KERNELS = {
    "experts shrink": (expert_shrink_kernel, shrink_options),
    "experts expand": (expert_expand_kernel, expand_options),
}
BLOCKS = {"few_rows": FEW_ROWS, "many_rows": MANY_ROWS}
POINTERS = {
    "h_ptr": "*fp32",
    "weights_ptr": "*fp32",
    "keys_ptr": "*i32",
    "heads_ptr": "*i32",
    "order_ptr": "*i64",
    "experts_ptr": "*i64",
    "of_row_ptr": "*i32",
    "inside_ptr": "*i32",
    "ends_ptr": "*i32",
    "spans_ptr": "*i64",
    "units_ptr": "*i64",
}


def compile_with(kernel: Any, chosen: dict[str, int], dtype: str, target: GPUTarget) -> Any:
    """Compile a kernel. chosen: constants and options."""
    constants = {name: value for name, value in chosen.items() if name.isupper()}
    options = {name: value for name, value in chosen.items() if not name.isupper()}
    signature = {
        arg: "constexpr" if arg in constants else POINTERS.get(arg, f"*{dtype}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
    }
    # What the launcher finds in practice: pointers and widths are multiples of 16.
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if arg.endswith(("_ptr", "_stride", "_features")) or arg == "columns"
    }
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)


def expert_entries(
    target_name: str, target: GPUTarget, resources: Callable[[Any], dict[str, int]]
) -> Iterator[dict[str, Any]]:
    """Compile the kernels; those in float32 and for unaligned factors for one GPU alone."""
    variants = [("bf16", ALIGNMENT), *([("fp32", ALIGNMENT), ("bf16", 1)] if target_name == "sm_90" else [])]
    made = [
        (mode, name, dtype, kernel, options_of(blocks, alignment))
        for (mode, (kernel, options_of)), (name, blocks) in product(KERNELS.items(), BLOCKS.items())
        for dtype, alignment in variants
    ]
    sorting = {"BLOCK": BLOCK, "num_warps": WARPS}
    made += [("experts sort", "whole rows", "int32", kernel, sorting) for kernel in (place_kernel, tile_kernel)]
    for mode, name, dtype, kernel, chosen in made:
        compiled = compile_with(kernel, chosen, dtype, target)
        yield {
            "target": target_name,
            "blocks": name,
            "mode": mode,
            "dtype": dtype,
            "threads": chosen["num_warps"] * target.warp_size,
            "programs": 1,  # none waits for another
            "shared": compiled.metadata.shared,
            **resources(compiled),
        }
