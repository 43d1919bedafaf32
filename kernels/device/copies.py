"""Arrays of the host on their way to a device."""

from typing import Any

import numpy.typing as npt
import torch


def pinned(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array where a copy to that device need not be waited for; on a CPU, the array's own memory.

    torch's host allocator hands pinned memory out again only when the copy from it is done.
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """On the device, behind what the current stream has been given."""
    return pinned(array, device).to(device, non_blocking=True)
