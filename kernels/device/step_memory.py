"""The metadata of a step, sent to the device in one copy: token ids, plans of attention and bypasses, and others.

    front    places reserved before the first step, for good: what a captured launch reads lies or is named there
    behind   what a step appends, at places of its own

One buffer on the device that never moves, in fields of int32. The host writes a step's fields into one of a few pinned
buffers in turns, so that the next step is written while the copy of this one is under way. Knows no plan.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..integers import cdiv, round_up

ALIGNMENT = 8  # fields: that a place begins at
_BUFFERS = 3  # of the host: the step that runs, the one that waits, the one that is written

Fields = npt.NDArray[np.int32]


class StepMemory:
    """The buffer of a step's metadata.

    `reserve` until the first `begin`, which allocates all; then `begin`, writes, and `send` for each step. spare:
    fields beside the reserved ones, for `append`. A step beyond them all is a mistake.
    """

    def __init__(self, device: torch.device, spare: int = 0) -> None:
        self.device = device
        self._front = 0
        self._behind = round_up(spare, ALIGNMENT)
        self._on_device: torch.Tensor | None = None
        self._buffers: list[_HostBuffer] = []
        self._turn = 0
        self._size = 0
        self._end = 0  # of the step's fields

    def reserve(self, front: int, behind: int = 0) -> int:
        """Return the place of `front` fields that every step has.

        behind: the most that a step takes beside them.
        """
        assert self._on_device is None, "reserved after the first step"
        place = self._front
        self._front += round_up(front, ALIGNMENT)
        self._behind += round_up(behind, ALIGNMENT)
        return place

    def begin(self) -> None:
        """Begin a step, without what was written and not sent. Waits while its host buffer is still being copied."""
        if self._on_device is None:
            with torch.inference_mode(False):  # or only code in inference mode could write to it later
                self._allocate(max(self._front + self._behind, ALIGNMENT))
        self._buffers[self._turn].wait()
        self._end = self._front

    def _allocate(self, size: int) -> None:
        self._size = size
        self._on_device = torch.zeros(size, dtype=torch.int32, device=self.device)
        buffers = _BUFFERS if self.device.type == "cuda" else 1
        self._buffers = [_HostBuffer(size, self.device) for _ in range(buffers)]

    def at(self, place: int, count: int) -> Fields:
        """Return fields of the step to write to; those of the front may still hold what an earlier step wrote."""
        return self._buffers[self._turn].fields[place : place + count]

    def take(self, count: int) -> int:
        """Return the place of `count` fields more, for this step."""
        place = self._end
        self._end += round_up(count, ALIGNMENT)
        assert self._end <= self._size, "a step beyond the limits"
        return place

    def append(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """Write an array. Returns it on the device, where it is valid from `send` until the next step's."""
        data = np.ascontiguousarray(array)
        count = cdiv(data.nbytes, 4)
        place = self.take(count)
        self.at(place, count).view(np.uint8)[: data.nbytes] = data.reshape(-1).view(np.uint8)
        return self.seen(place, data.nbytes, torch.from_numpy(data).dtype).view(data.shape)

    @property
    def on_device(self) -> torch.Tensor:
        """Return the buffer on the device, (fields,) int32."""
        assert self._on_device is not None, "before the first step"
        return self._on_device

    def seen(self, place: int, num_bytes: int, dtype: torch.dtype) -> torch.Tensor:
        """View bytes of the device buffer as numbers of a type."""
        return self.on_device[place : place + cdiv(num_bytes, 4)].view(torch.uint8)[:num_bytes].view(dtype)

    def send(self) -> None:
        """Enqueue the copy. The next step is written into another buffer."""
        self._buffers[self._turn].send(self.on_device, self._end)
        self._turn = (self._turn + 1) % len(self._buffers)


class _HostBuffer:
    """A pinned buffer, and the event behind the copy from it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._pinned = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._sent = torch.cuda.Event() if device.type == "cuda" else None
        self._device = device
        self.fields: Fields = self._pinned.numpy()

    def send(self, there: torch.Tensor, count: int) -> None:
        there[:count].copy_(self._pinned[:count], non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Wait until the copy is done. An event that was never recorded counts as done."""
        if self._sent is not None:
            self._sent.synchronize()
