"""Compiles the kernels of spare columns for every GPU served, for what programs take of the device.

    python -m tests.kernels.bypass.columns.compile_columns [--table]

Prints one JSON object a line, or the table of docs/kernels.md. In a process of its own, since triton either interprets
kernels or compiles them.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from peftserve.kernels.bypass.columns.kernels import fill_kernel, store_kernel
from peftserve.kernels.bypass.columns.triton_products import FILL, FILL_PLAIN, FILL_SHORT, STORE, LaunchConfig
from tests.kernels.compile_kernels import TARGETS, resources

TYPES = {
    "table_ptr": "*i64",
    "groups_ptr": "*i64",
    "jobs_ptr": "*i64",
    "runs_ptr": "*i32",
    "weights_ptr": "*fp32",
}
ALIGNED = ("_ptr", "_stride", "in_features", "columns")  # what the launcher finds in practice: multiples of 16
KERNELS = {
    "fill": (fill_kernel, FILL, "bf16", {"COPY": False, "ALIGN": 8}),
    "fill and copy": (fill_kernel, FILL, "bf16", {"COPY": True, "ALIGN": 8}),
    "fill and copy, short step": (fill_kernel, FILL_SHORT, "bf16", {"COPY": True, "ALIGN": 8}),
    "fill and copy, odd places": (fill_kernel, FILL_PLAIN, "bf16", {"COPY": True, "ALIGN": 1}),
    "fill and copy, fp32": (fill_kernel, FILL_PLAIN, "fp32", {"COPY": True, "ALIGN": 8}),
    "store": (store_kernel, STORE, "bf16", {"LARGEST": 3e38}),
}


def compile_kernel(kernel: Any, shape: LaunchConfig, dtype: str, constants: dict[str, Any], target: GPUTarget) -> Any:
    constants = {**shape.blocks, **constants}
    signature = {
        arg: "constexpr" if arg in constants else TYPES.get(arg, f"*{dtype}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i, arg in enumerate(kernel.arg_names) if arg.endswith(ALIGNED)}
    options = {"num_warps": shape.warps, "num_stages": shape.stages}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)


def entries() -> Iterator[dict[str, Any]]:
    for target_name, target in TARGETS.items():
        for name, (kernel, shape, dtype, constants) in KERNELS.items():
            compiled = compile_kernel(kernel, shape, dtype, constants, target)
            found = resources(compiled)
            yield {"target": target_name, "kernel": name, "shared": compiled.metadata.shared, **found}


def main() -> None:
    table = sys.argv[1:] == ["--table"]
    if table:
        print("| GPU | kernel | registers | shared memory | spilled |\n" + "| --- " * 5 + "|")
    for entry in entries():
        cells = [entry[key] for key in ("target", "kernel", "registers", "shared", "spilled")]
        print("| " + " | ".join(map(str, cells)) + " |" if table else json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
