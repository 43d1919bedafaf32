"""What a design makes of its kernels: their constants, and the compiler's options."""

from typing import Any

import torch

from .designs import Design

_EARLY_FROM = 9  # compute capability: programmatic dependent launch
_REGISTERS = 65536 // 4  # of a multiprocessor, for each of four programs


def is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.version.hip


def starts_early(device: torch.device) -> bool:
    """Whether a launch may begin before the one ahead has ended."""
    return is_nvidia(device) and torch.cuda.get_device_capability(device)[0] >= _EARLY_FROM


def shrink_options(design: Design, alignment: int, *, early: bool) -> dict[str, Any]:
    shrink = design.shrink
    return {
        "ROWS": design.rows,
        "RANKS": shrink.ranks,
        "STEP": shrink.step,
        **_common(alignment, shrink.warps, shrink.stages, early=early),
    }


def expand_options(design: Design, alignment: int, *, early: bool, nvidia: bool) -> dict[str, Any]:
    """Registers are given in so far as programs still have as many bytes under way as the memory needs."""
    expand = design.expand
    limit = {"maxnreg": min(max(_REGISTERS // (32 * expand.warps), 128), 255)} if nvidia else {}
    return {
        "ROWS": design.rows,
        "RANKS": expand.ranks,
        "COLUMNS": expand.columns,
        "WALKED": expand.walked,
        "STAGES": expand.stages,
        **_common(alignment, expand.warps, expand.stages, early=early),
        **limit,
    }


def _common(alignment: int, warps: int, stages: int, *, early: bool) -> dict[str, Any]:
    launch = {"launch_pdl": True} if early else {}
    compiler = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return {"ALIGN": alignment, "EARLY": early, **compiler, **launch}
