"""The constants of a design's kernels, and the compiler's options."""

from typing import Any

import torch

from .designs import Design

_EARLY_FROM = 9  # compute capability: programmatic dependent launch
_REGISTERS = 65536  # of a multiprocessor
_HOPPER = 9
_NARROW = 128  # columns, that take no more registers than all of a row with one adapter


def is_nvidia(device: torch.device) -> bool:
    return device.type == "cuda" and not torch.version.hip


def capability_of(device: torch.device) -> int | None:
    """Return the major compute capability; None if the device is no GPU of NVIDIA."""
    return torch.cuda.get_device_capability(device)[0] if is_nvidia(device) else None


def starts_early(capability: int | None) -> bool:
    """Return whether a launch may begin before the one ahead has ended."""
    return capability is not None and capability >= _EARLY_FROM


def shrink_options(design: Design, alignment: int, *, part: int, early: bool) -> dict[str, Any]:
    """Return the options of shrink. part: input features of a block."""
    shrink = design.shrink
    return {
        "ROWS": design.rows,
        "RANKS": shrink.ranks,
        "STEP": shrink.step,
        "WHOLE": part <= shrink.step,
        **_common(alignment, shrink.warps, shrink.stages, early=early),
    }


def expand_options(
    design: Design, alignment: int, *, early: bool, capability: int | None, plain: bool
) -> dict[str, Any]:
    """Return the options of expand. plain: in 16 bits, and behind a shrink.

    Registers are limited so that enough programs run for the memory to stay busy. Those are four programs of a
    multiprocessor; six, where single rows need no more registers than that.
    """
    expand = design.expand
    programs = 6 if plain and design.rows == 1 and capability == _HOPPER else 4
    most = _REGISTERS // (programs * 32 * expand.warps) // 8 * 8
    limit = {} if capability is None else {"maxnreg": min(max(most, 128), 255)}
    return {
        "ROWS": design.rows,
        "RANKS": expand.ranks,
        "COLUMNS": expand.columns,
        "NARROW": min(expand.columns, _NARROW),
        "WALKED": expand.walked,
        "STAGES": expand.stages,
        **_common(alignment, expand.warps, expand.stages, early=early),
        **limit,
    }


def _common(alignment: int, warps: int, stages: int, *, early: bool) -> dict[str, Any]:
    launch = {"launch_pdl": True} if early else {}
    compiler = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return {"ALIGN": alignment, "EARLY": early, **compiler, **launch}
