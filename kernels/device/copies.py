"""Copies of arrays from the host to a device."""

from typing import Any

import numpy.typing as npt
import torch


def pinned(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Return the array in memory from which a copy to the device need not be waited for; on a CPU, its own memory.

    torch's host allocator reuses pinned memory only when the copy from it is done.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copy an array to the device, behind the work that the current stream has."""
    return pinned(array, device).to(device, non_blocking=True)
