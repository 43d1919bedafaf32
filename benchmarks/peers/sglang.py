"""SGLang's LoRA kernels: `csgmv`, which its server uses by default, and `triton_v2`, which is the faster one.

As its server runs them where that is best: no idle adapters and no segments for a larger batch, the plans that it has
for the GPU, and chunks of up to 128 rows where it says that these might be faster. That `triton_v2` multiplies by A
beside the base's product is left out, since here is no such product: its kernels follow each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import accumulate, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.problem import BypassProblem

from .sglang_routes import align
from .standins import Unset, can_run_triton, device_name, ignore, packages, stand_in, stand_in_for_missing, undecorated
from .wheels import VERSIONS, unpacked

CHUNKS = {"decode": 16, "prefill": 128}


def contenders() -> list[Contender]:
    root = unpacked("sglang")
    return [TritonV2(root / "sglang"), Csgmv(root / "sglang")] if root and can_run_triton() else []


@dataclass(frozen=True)
class Linear:
    """A group's factors as SGLang's pool keeps them. a: (adapters, sites · largest rank, in_features), each adapter's
    sites adjoining at its own rank. b: (adapters, all out_features, largest rank). offsets: of the sites in b.
    """

    a: torch.Tensor
    b: torch.Tensor
    offsets: tuple[int, ...]


class TritonV2:
    name = "sglang-v2"
    version = VERSIONS["sglang"]

    def __init__(self, top: Path) -> None:
        self._top = top

    def prepare(self, problem: BypassProblem) -> Run | None:
        if problem.arena.dtype == torch.float32 or not problem.joined:
            return None
        sglang = load(self._top)
        linears = [linear_of(problem, index) for index in range(len(problem.groups))]
        runner = _runner(sglang, problem)
        plans = [
            runner.plan_for(sglang.plan.DenseLoraKind.LINEAR, *_sizes(linear), num_tokens=problem.scenario.tokens)
            for linear in linears
        ]

        def run() -> None:
            for index, x, outputs in problem.calls():
                linear, plan, y = linears[index], plans[index], problem.joined[index % problem.layer_groups]
                h = runner.run_a(x, linear.a, stack=len(outputs), plan=plan)
                runner.run_b(h, linear.b, y, offsets=linear.offsets, plan=plan)

        return run


def _sizes(linear: Linear) -> tuple[int, int, int]:
    return linear.b.shape[2], linear.a.shape[2], linear.offsets[-1]


def _runner(sglang: SimpleNamespace, problem: BypassProblem) -> Any:
    device, count = problem.arena.device, len(problem.adapters)
    if device.type != "cuda":
        sglang.runner.slice_geometry = sglang.geometry
    runner = sglang.runner.DenseLoraRunner(sglang.workspace.LoraWorkspace(), max_loras=count, device=device)
    runner.begin_batch(
        token_slots=_integers([s.slot for s in problem.scenario.segments for _ in range(s.start, s.end)], device),
        lora_ranks=_integers(problem.scenario.ranks, device),
        scalings=torch.ones(count, device=device),
        num_tokens=problem.scenario.tokens,
        phase=sglang.utils.Phase(problem.scenario.phase),
        graph_mode=False,
    )
    return runner


class Csgmv:
    name = "sglang-csgmv"
    version = VERSIONS["sglang"]

    def __init__(self, top: Path) -> None:
        self._top = top

    def prepare(self, problem: BypassProblem) -> Run | None:
        if problem.arena.dtype == torch.float32 or not problem.joined:
            return None
        sglang = load(self._top)
        linears = [linear_of(problem, index) for index in range(len(problem.groups))]
        batch = _batch(sglang, problem)
        offsets = [_integers(linear.offsets, problem.arena.device) for linear in linears]
        on_host = [torch.tensor(linear.offsets) for linear in linears]

        def run() -> None:
            for index, x, outputs in problem.calls():
                linear, y = linears[index], problem.joined[index % problem.layer_groups]
                widest = max(problem.groups[index].out_features)
                h = sglang.shrink(x, linear.a, batch, num_slices=len(outputs))
                sglang.expand(h, linear.b, batch, offsets[index], widest, y, slice_offsets_cpu=on_host[index])

        return run


def _batch(sglang: SimpleNamespace, problem: BypassProblem) -> Any:
    """Return SGLang's batch: each adapter's rows in chunks, which are in its order already."""
    scenario, device = problem.scenario, problem.arena.device
    chunk = CHUNKS[scenario.phase]
    lengths = [(s.slot, min(chunk, s.end - row)) for s in scenario.segments for row in range(s.start, s.end, chunk)]
    return sglang.utils.LoRABatchInfo(
        use_cuda_graph=False,
        bs=len(scenario.segments),
        num_segments=len(lengths),
        seg_indptr=_integers([0, *accumulate(length for _, length in lengths)], device),
        weight_indices=_integers([slot for slot, _ in lengths], device),
        lora_ranks=_integers(scenario.ranks, device),
        scalings=torch.ones(len(problem.adapters), device=device),
        max_len=chunk,
        seg_lens=None,
        permutation=torch.arange(scenario.tokens, dtype=torch.int32, device=device),
    )


def linear_of(problem: BypassProblem, index: int) -> Linear:
    group, count, rank = problem.groups[index], len(problem.adapters), max(problem.scenario.ranks)
    sites = len(group.out_features)
    offsets = (0, *accumulate(group.out_features))
    a = problem.arena.new_zeros(count, sites * rank, group.in_features)
    b = problem.arena.new_zeros(count, offsets[-1], rank)
    for slot, adapter in enumerate(problem.adapters):
        a[slot, : sites * adapter.rank] = adapter.a[index]
        for part, factor in zip(b[slot].split(group.out_features), adapter.b[index], strict=True):
            part[:, : adapter.rank] = factor.t()
    return Linear(a, b, offsets)


def _integers(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


@cache
def load(top: Path) -> SimpleNamespace:
    """Import SGLang's modules and functions, without SGLang around them."""
    stand_in_for_missing()
    _stand_in_for_the_server(top)
    dense, lora_b = "sglang.kernels.ops.lora.dense", import_module("sglang.kernels.ops.lora.common.lora_b")
    return SimpleNamespace(
        **{name: import_module(f"sglang.srt.lora.{name}") for name in ("utils", "workspace")},
        **{name: import_module(f"sglang.srt.lora.dense.{name}") for name in ("runner", "plan")},
        shrink=import_module(f"{dense}.chunked_sgmv_shrink").chunked_sgmv_lora_shrink_forward,
        expand=import_module(f"{dense}.chunked_sgmv_expand").chunked_sgmv_lora_expand_forward,
        geometry=geometry_without_cuda(lora_b.SliceGeometry),
    )


def _stand_in_for_the_server(top: Path) -> None:
    lora, srt = "sglang.kernels.ops.lora", "sglang.srt"
    packages(
        top, "sglang", "sglang.kernels", "sglang.kernels.ops", lora, f"{lora}.common", f"{lora}.moe", f"{lora}.dense"
    )
    packages(top, srt, f"{srt}.lora", f"{srt}.lora.dense")
    stand_in(f"{srt}.model_executor")
    stand_in(f"{srt}.model_executor.forward_batch_info", ForwardBatch=object, ForwardMode=object)
    stand_in(f"{srt}.environ", envs=Unset())
    stand_in(
        f"{srt}.utils", cached_triton_kernel=undecorated, is_cuda=torch.cuda.is_available, get_device_name=device_name
    )
    stand_in(f"{srt}.utils.hf_transformers_utils", AutoConfig=object)
    stand_in(f"{srt}.utils.common", direct_register_custom_op=ignore)
    stand_in("sglang.kernels.ops.moe")
    stand_in("sglang.kernels.ops.moe.moe_align", moe_align_block_size=align)


def geometry_without_cuda(kind: Any) -> Any:
    """Return SGLang's `slice_geometry` for Triton's interpreter: SGLang's own takes CUDA devices only."""

    def geometry(offsets: tuple[int, ...], block: int, device: torch.device) -> Any:
        widths = [end - start for start, end in pairwise(offsets)]
        uniform = widths[0] if len(set(widths)) == 1 else 0
        return kind(
            slice_offsets=_integers(offsets, device),
            out_offsets=_integers(offsets[:-1], device),
            num_slices=len(widths),
            num_column_tiles=sum(-(-width // block) for width in widths),
            uniform_width=uniform,
            out_stride=uniform,
            full_tiles=not any(width % block for width in widths),
            block_size_n=block,
        )

    return geometry
