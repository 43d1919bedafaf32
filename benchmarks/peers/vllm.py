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
from benchmarks.kernels.steps import Step

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

    def prepare(self, step: Step) -> Run | None:
        if step.arena.dtype == torch.float32 or not step.joined:
            return None
        kernels = load(self._root / "vllm")
        kernels.forget()
        groups = [(_stacked_a(step, index), _stacked_b(step, index)) for index in range(len(step.groups))]
        metadata = _metadata(kernels.make_metadata, step)
        tokens, rank = step.scenario.tokens, max(step.scenario.ranks)

        def run() -> None:
            for index, x, _ in step.calls():
                a, b = groups[index]
                h = torch.empty(len(a), tokens, rank, dtype=torch.float32, device=x.device)
                kernels.shrink(x, a, h, *metadata, 1.0)
                kernels.expand(h, b, step.joined[index % step.layer_groups], *metadata, add_inputs=True)

        return run


def _metadata(make: Callable[..., Any], step: Step) -> tuple[Any, ...]:
    tokens, device = step.scenario.tokens, step.arena.device
    slots = [s.slot for s in step.scenario.segments for _ in range(s.start, s.end)]
    made = make(len(step.adapters), tokens, device)
    made.prepare_tensors(torch.tensor(slots, dtype=torch.int32, device=device))
    arguments: tuple[Any, ...] = made.meta_args(tokens, specialize_active_lora=True)
    return arguments


def _stacked_a(step: Step, index: int) -> Weights:
    """By site: (adapters, 1, largest rank, in_features)."""
    group, rank = step.groups[index], max(step.scenario.ranks)
    shape = (len(step.adapters), 1, rank, group.in_features)
    stacked = [step.arena.new_zeros(shape) for _ in group.out_features]
    for slot, adapter in enumerate(step.adapters):
        for site, part in zip(stacked, adapter.a[index].split(adapter.rank), strict=True):
            site[slot, 0, : adapter.rank] = part
    return stacked


def _stacked_b(step: Step, index: int) -> Weights:
    """By site: (adapters, 1, out_features, largest rank)."""
    rank = max(step.scenario.ranks)
    stacked = [step.arena.new_zeros(len(step.adapters), 1, n, rank) for n in step.groups[index].out_features]
    for slot, adapter in enumerate(step.adapters):
        for site, b in zip(stacked, adapter.b[index], strict=True):
            site[slot, 0, :, : adapter.rank] = b.t()
    return stacked


@cache
def load(top: Path) -> SimpleNamespace:
    """vLLM's functions, without vLLM around them. forget: what they keep by the addresses of tensors that are gone."""
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
    """As where an operator of the name exists: vLLM then leaves its plain function in place."""
    raise AttributeError


def _to_device(data: object, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(data, dtype=dtype, device=device)
