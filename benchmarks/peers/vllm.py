"""vLLM's LoRA kernels: a shrink and an expand for each group, each adapter padded to the largest rank.

As its server runs them where that is best: its tables have just the active adapters, its largest rank is the step's
largest, and launches are specialised on the number of active adapters.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import triton

from benchmarks.kernels.contender import Contender, Run
from benchmarks.kernels.problem import BypassProblem

from .standins import can_run_triton, ignore, packages, stand_in
from .wheels import VERSIONS, unpacked

OPS = "vllm.lora.ops.triton_ops"
ENVS = {  # vLLM's defaults of the settings that its kernels read
    "VLLM_BATCH_INVARIANT": False,
    "VLLM_LORA_DISABLE_PDL": False,
    "VLLM_LORA_ENABLE_DUAL_STREAM": False,
    "VLLM_TUNED_CONFIG_FOLDER": None,
}
Weights = list[torch.Tensor]


def contenders() -> list[Contender]:
    root = unpacked("vllm")
    return [Vllm(root)] if root and can_run_triton() else []


class Vllm:
    name = "vllm"
    version = VERSIONS["vllm"]

    def __init__(self, root: Path) -> None:
        self._root = root

    def prepare(self, problem: BypassProblem) -> Run | None:
        if problem.arena.dtype == torch.float32 or not problem.joined:
            return None
        kernels = load(self._root / "vllm")
        kernels.forget()
        groups = [(_stacked_a(problem, index), _stacked_b(problem, index)) for index in range(len(problem.groups))]
        metadata = _metadata(kernels.make_metadata, problem)
        tokens, rank = problem.scenario.tokens, max(problem.scenario.ranks)

        def run() -> None:
            for index, x, _ in problem.calls():
                a, b = groups[index]
                h = torch.empty(len(a), tokens, rank, dtype=torch.float32, device=x.device)
                kernels.shrink(x, a, h, *metadata, 1.0)
                kernels.expand(h, b, problem.joined[index % problem.layer_groups], *metadata, add_inputs=True)

        return run


def _metadata(make: Callable[..., Any], problem: BypassProblem) -> tuple[Any, ...]:
    tokens, device = problem.scenario.tokens, problem.arena.device
    slots = [s.slot for s in problem.scenario.segments for _ in range(s.start, s.end)]
    made = make(len(problem.adapters), tokens, device)
    made.prepare_tensors(torch.tensor(slots, dtype=torch.int32, device=device))
    arguments: tuple[Any, ...] = made.meta_args(tokens, specialize_active_lora=True)
    return arguments


def _stacked_a(problem: BypassProblem, index: int) -> Weights:
    """Return A by site: (adapters, 1, largest rank, in_features)."""
    group, rank = problem.groups[index], max(problem.scenario.ranks)
    shape = (len(problem.adapters), 1, rank, group.in_features)
    stacked = [problem.arena.new_zeros(shape) for _ in group.out_features]
    for slot, adapter in enumerate(problem.adapters):
        for site, part in zip(stacked, adapter.a[index].split(adapter.rank), strict=True):
            site[slot, 0, : adapter.rank] = part
    return stacked


def _stacked_b(problem: BypassProblem, index: int) -> Weights:
    """Return B by site: (adapters, 1, out_features, largest rank)."""
    rank = max(problem.scenario.ranks)
    stacked = [problem.arena.new_zeros(len(problem.adapters), 1, n, rank) for n in problem.groups[index].out_features]
    for slot, adapter in enumerate(problem.adapters):
        for site, b in zip(stacked, adapter.b[index], strict=True):
            site[slot, 0, :, : adapter.rank] = b.t()
    return stacked


@cache
def load(top: Path) -> SimpleNamespace:
    """Import vLLM's functions, without vLLM around them.

    forget: clears what they keep by the addresses of freed tensors.
    """
    _stand_in_for_the_server(top)
    utils: ModuleType = import_module(f"{OPS}.utils")
    return SimpleNamespace(
        make_metadata=import_module(f"{OPS}.lora_kernel_metadata").LoRAKernelMeta.make,
        shrink=import_module(f"{OPS}.lora_shrink_op").lora_shrink,
        expand=import_module(f"{OPS}.lora_expand_op").lora_expand,
        forget=lambda: (utils._LORA_A_PTR_DICT.clear(), utils._LORA_B_PTR_DICT.clear()),
    )


def _stand_in_for_the_server(top: Path) -> None:
    packages(top, "vllm", "vllm.utils", "vllm.lora", "vllm.lora.ops", OPS)
    stand_in("vllm.envs", **ENVS)
    stand_in("vllm.triton_utils", tl=triton.language, triton=triton, HAS_TRITON=True)
    logger = SimpleNamespace(warning_once=ignore, info_once=ignore, debug_once=ignore)
    stand_in("vllm.logger", init_logger=lambda name: logger)
    platform = SimpleNamespace(is_cuda=torch.cuda.is_available, has_device_capability=_has_capability)
    stand_in("vllm.platforms", current_platform=platform)
    stand_in("vllm.utils.torch_utils", direct_register_custom_op=_refuse, async_tensor_h2d=_to_device)


def _has_capability(number: int) -> bool:
    return torch.cuda.get_device_capability() >= divmod(number, 10)


def _refuse(**_: object) -> None:
    """Raise AttributeError, as where an operator of the name exists: vLLM then leaves its plain function in place."""
    raise AttributeError


def _to_device(data: object, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype, device=device)
