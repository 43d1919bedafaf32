"""Copies between host and device that nobody waits for: late arguments of a step in one, its results in another.

On a CPU nothing is copied: tensors share memory with the arrays.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[Any]]

_ALIGNMENT = 16  # bytes; more than any number needs, so that every part can be seen as its own type


def is_host(device: torch.device) -> bool:
    """Return whether the device is the host, so that reading a tensor waits for nothing."""
    return device.type == "cpu"


def to_device(groups: Sequence[Arrays], device: torch.device) -> list[list[Tensor]]:
    """Return the arrays as tensors on the device, in the same groups. On a CPU they share memory with the arrays."""
    if is_host(device):
        return [[torch.from_numpy(array) for array in group] for group in groups]
    arrays = [np.ascontiguousarray(array) for group in groups for array in group]
    begins, size = _layout([array.nbytes for array in arrays])
    pinned = _pinned(size)
    memory = pinned.numpy()
    for begin, array in zip(begins, arrays, strict=True):
        memory[begin : begin + array.nbytes] = array.reshape(-1).view(np.uint8)
    there = pinned.to(device, non_blocking=True)
    parts = iter(
        there[begin : begin + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for begin, array in zip(begins, arrays, strict=True)
    )
    return [[next(parts) for _ in group] for group in groups]


class Returning:
    """Tensors that are being copied from a device to the host; `result` waits for them."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Enqueue the copy on the current stream; the tensors are read when the stream gets there."""
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        if tensors and not is_host(tensors[0].device):
            self._start()

    def _start(self) -> None:
        device = self._tensors[0].device
        # By falling size of their numbers, each part begins where its type may.
        order = sorted(range(len(self._tensors)), key=lambda i: -self._tensors[i].element_size())
        flat = [self._tensors[i].contiguous().view(-1).view(torch.uint8) for i in order]
        host = _pinned(sum(part.numel() for part in flat))
        host.copy_(flat[0] if len(flat) == 1 else torch.cat(flat), non_blocking=True)
        for i, part in zip(order, host.split([part.numel() for part in flat]), strict=True):
            self._tensors[i] = part.view(self._tensors[i].dtype).view(self._tensors[i].shape)
        self._arrived = _event(device)

    def result(self) -> list[Tensor]:
        """Wait for the copy, and for nothing that was enqueued after it. Returns the tensors on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _layout(sizes: list[int]) -> tuple[list[int], int]:
    """Return the offset of each array and the size of all, in bytes."""
    *begins, end = accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0)
    return begins, end


def _pinned(size: int) -> Tensor:
    """Return `size` bytes of pinned memory. torch hands them out again once the copies that it knows of are done."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def _event(device: torch.device) -> torch.cuda.Event:
    """Return an event recorded now on the current stream of the device."""
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
