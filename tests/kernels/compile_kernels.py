"""Compiles the kernels for every GPU served, in the configurations shipped, for what programs take of the device.

    python -m tests.kernels.compile_kernels [--table]

Prints one JSON object a line, or the table of docs/kernels.md. Run by test_triton_kernels.py in a process of its own,
since triton either interprets kernels or compiles them.
"""

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from peftserve.kernels.attention.layout import AttentionLayer
from peftserve.kernels.attention.triton.kernels import attention_kernel
from peftserve.kernels.attention.triton.tiles import TileConfig, compile_options, tiles_for
from peftserve.kernels.bypass.triton.choice import LARGE
from peftserve.kernels.bypass.triton.designs import Design, candidates, rows_apart, rows_in_tiles
from peftserve.kernels.bypass.triton.expand import expand_kernel
from peftserve.kernels.bypass.triton.lists import BLOCK as LIST_BLOCK
from peftserve.kernels.bypass.triton.lists import WARPS as LIST_WARPS
from peftserve.kernels.bypass.triton.lists import lists_kernel
from peftserve.kernels.bypass.triton.options import expand_options, shrink_options
from peftserve.kernels.bypass.triton.shrink import shrink_kernel
from peftserve.kernels.sampling.triton_argmax import BLOCK, WARPS, argmax_kernel
from tests.kernels.compile_ops import op_entries
from tests.kernels.ops.experts.compile_kernels import expert_entries

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DESIGNS = {"rows apart": rows_apart(), "rows in tiles": rows_in_tiles()}
MODES = ("shrink", "expand", "gather")
MOST_PARTS = {True: 16, False: 64}  # of 14,336 input features: for tiles of several rows, for single ones
POINTERS = {"table_ptr": "*i64", "list_ptr": "*i32", "h_ptr": "*fp32", "partial_ptr": "*fp32", "bias_ptr": "*fp32"}
POINTERS |= {"records_ptr": "*i32", "ids_ptr": "*i64"}
LAYERS = {  # by their heads' dim
    64: AttentionLayer(64, 8, 64, 64, 0.125, window=128, sinks=True),
    128: AttentionLayer(32, 8, 128, 128, 0.09),
    256: AttentionLayer(8, 4, 256, 256, 0.06, window=4096, softcap=50.0),
}

FORMS = {"decode": (False, True), "narrow": (False, False), "wide": (True, False)}  # in wide tiles, with the write


def compile_bypass(design: Design, mode: str, dtype: str, target: GPUTarget) -> Any:
    """Compile as launches find it in practice: pointers and widths are multiples of 16. Early where the device can."""
    early = design.early and target.backend == "cuda" and target.arch >= 90
    chosen = shrink_options(design, 8, part=design.shrink.part, early=early)
    if mode != "shrink":
        capability = target.arch // 10 if target.backend == "cuda" else None
        plain = mode == "expand" and dtype == "bf16"
        amd = target.backend == "hip"
        chosen = expand_options(design, 8, early=early, capability=capability, plain=plain, amd=amd)
        chosen |= {"SITES": 3, "GATHER": mode == "gather", "MOST_PARTS": MOST_PARTS[design.rows > 1]}
    return _compile(
        shrink_kernel if mode == "shrink" else expand_kernel, chosen, dtype, target, ("group", "first_site")
    )


def compile_lists(target: GPUTarget) -> Any:
    return _compile(lists_kernel, {"SITES": 3, "BLOCK": LIST_BLOCK, "num_warps": LIST_WARPS}, "bf16", target)


def _compile(kernel: Any, chosen: dict[str, Any], dtype: str, target: GPUTarget, odd: tuple[str, ...] = ()) -> Any:
    """Compile a kernel. odd: arguments that may be any number."""
    constants = {k: v for k, v in chosen.items() if k.isupper()}
    options = {k: v for k, v in chosen.items() if not k.isupper()}
    signature = {
        arg: "constexpr" if arg in constants else POINTERS.get(arg, f"*{dtype}" if arg.endswith("_ptr") else "i32")
        for arg in kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if arg not in constants and arg not in odd and arg != "parts"
    }
    return triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)


def compile_attention(layer: AttentionLayer, tiles: TileConfig, target: GPUTarget, *, writes: bool) -> Any:
    """Compile in bf16, at pages of 16 tokens."""
    chosen = compile_options(layer, tiles, page_size=16, writes=writes)
    constants = {k: v for k, v in chosen.items() if k.isupper()}
    options = {k: v for k, v in chosen.items() if not k.isupper()}
    types = POINTERS | {"scale": "fp32"}
    signature = {
        arg: "constexpr" if arg in constants else types.get(arg, "*bf16" if arg.endswith("_ptr") else "i32")
        for arg in attention_kernel.arg_names
    }
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(attention_kernel.arg_names)
        if arg.endswith(("_ptr", "_stride"))
    }
    return triton.compile(ASTSource(attention_kernel, signature, constants, aligned), target=target, options=options)


def compile_argmax(dtype: str, target: GPUTarget) -> Any:
    signature = {
        "rows_ptr": f"*{dtype}",
        "ids_ptr": "*i64",
        "highest_ptr": "*fp32",
        "row_stride": "i32",
        "columns": "i32",
        "BLOCK": "constexpr",
    }
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(5)}
    source = ASTSource(argmax_kernel, signature, {"BLOCK": BLOCK}, aligned)
    return triton.compile(source, target=target, options={"num_warps": WARPS})


def resources(compiled: Any) -> dict[str, int]:
    """Return the registers of a thread, and what it spills: bytes of local memory (CUDA) or registers (ROCm)."""
    if "amdgcn" in compiled.asm:
        found = re.findall(r"([sv])gpr_(count|spill_count):\s*(\d+)", compiled.asm["amdgcn"])
        return {
            "registers": sum(int(n) for kind, what, n in found if (kind, what) == ("v", "count")),
            "spilled": sum(int(n) for kind, what, n in found if (kind, what) == ("v", "spill_count")),
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fields = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    return {"registers": int(fields["REG"]), "spilled": int(fields["STACK"]) + int(fields["LOCAL"])}


def _others() -> Iterator[tuple[str, Design, str]]:
    """Yield the other designs to choose from, each kernel once."""
    known = {(design.rows, half) for design in DESIGNS.values() for half in (design.shrink, design.expand)}
    for number, design in enumerate(candidates()):
        for mode, half in (("shrink", design.shrink), ("expand", design.expand)):
            if (design.rows, half) not in known:
                known.add((design.rows, half))
                yield f"candidate {number}", design, mode


def bypass_entries(target_name: str, target: GPUTarget, *, every: bool) -> Iterator[dict[str, Any]]:
    """Compile the kernels of the bypasses; those in float32 and of unusual designs for one GPU alone. every: for the
    table.
    """
    dtypes = ("bf16", "fp32") if target_name == "sm_90" else ("bf16",)
    for (name, design), mode, dtype in itertools.product(DESIGNS.items(), MODES, dtypes):
        warps = (design.shrink if mode == "shrink" else design.expand).warps
        yield entry_of(target_name, target, name, mode, dtype, warps, compile_bypass(design, mode, dtype, target))
    for name, design, mode in _others() if every or target_name == "sm_90" else ():
        if LARGE not in (design.rows, design.expand.ranks) or target_name in ("sm_90", "sm_100"):
            warps = (design.shrink if mode == "shrink" else design.expand).warps
            yield entry_of(target_name, target, name, mode, "bf16", warps, compile_bypass(design, mode, "bf16", target))
    compiled = compile_lists(target)
    yield entry_of(target_name, target, "lists", "lists", "bf16", LIST_WARPS, compiled)


def entry_of(
    target_name: str, target: GPUTarget, name: str, mode: str, dtype: str, warps: int, compiled: Any
) -> dict[str, Any]:
    return {
        "target": target_name,
        "blocks": name,
        "mode": mode,
        "dtype": dtype,
        "threads": warps * target.warp_size,
        "programs": 1,  # none waits for another
        "shared": compiled.metadata.shared,
        **resources(compiled),
    }


def attention_entries(target_name: str, target: GPUTarget, *, every: bool) -> Iterator[dict[str, Any]]:
    """Compile attention's kernel. every: for the table; otherwise the decodes of one layer, and its other forms for one
    GPU.
    """
    for dim, form in itertools.product(LAYERS if every else (128,), FORMS):
        if form != "decode" and not every and target_name != "sm_90":
            continue
        wide, writes = FORMS[form]
        tiles = tiles_for(LAYERS[dim], torch.bfloat16, wide=wide)
        compiled = compile_attention(LAYERS[dim], tiles, target, writes=writes)
        yield {
            "target": target_name,
            "blocks": form,
            "mode": f"attention {dim}",
            "dtype": "bf16",
            "threads": tiles.warps * target.warp_size,
            "programs": 1,  # none waits for another
            "shared": compiled.metadata.shared,
            **resources(compiled),
        }


def argmax_entries(target_name: str, target: GPUTarget) -> Iterator[dict[str, Any]]:
    for dtype in ("bf16", "fp32"):
        compiled = compile_argmax(dtype, target)
        yield {
            "target": target_name,
            "blocks": "whole rows",
            "mode": "argmax",
            "dtype": dtype,
            "threads": WARPS * target.warp_size,
            "programs": 1,
            "shared": compiled.metadata.shared,
            **resources(compiled),
        }


def entries(*, every: bool) -> Iterator[dict[str, Any]]:
    for target_name, target in TARGETS.items():
        yield from bypass_entries(target_name, target, every=every)
        yield from attention_entries(target_name, target, every=every)
        yield from argmax_entries(target_name, target)
        yield from ({**what, **resources(compiled)} for compiled, what in op_entries(target_name, target))
        yield from expert_entries(target_name, target, resources)


def main() -> None:
    table = sys.argv[1:] == ["--table"]
    if table:
        print("| GPU | blocks | mode | type | registers | shared memory | spilled |\n" + "| --- " * 7 + "|")
    for entry in entries(every=table):
        if table:
            cells = [entry[key] for key in ("target", "blocks", "mode", "dtype", "registers", "shared", "spilled")]
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
        else:
            print(json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
