"""What the host writes is on the device once it is sent, at places that stay."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from peftserve.kernels.device import step_memory
from peftserve.kernels.device.step_memory import ALIGNMENT, StepMemory

CPU = torch.device("cpu")


def test_the_front_is_at_one_place_in_every_step() -> None:
    memory = StepMemory(CPU)
    one, other = memory.reserve(3), memory.reserve(10, behind=20)
    assert [one % ALIGNMENT, other % ALIGNMENT] == [0, 0]
    memory.begin()
    there = memory.on_device.data_ptr()
    for number in range(5):
        memory.begin()
        memory.at(one, 3)[:] = number
        memory.at(other, 10)[:] = 10 + number
        place = memory.take(4 * number)
        memory.at(place, 4 * number)[:] = 20 + number
        memory.send()
        assert memory.on_device.data_ptr() == there
        assert memory.on_device[one : one + 3].tolist() == [number] * 3
        assert memory.on_device[other : other + 10].tolist() == [10 + number] * 10
        assert memory.on_device[place : place + 4 * number].tolist() == [20 + number] * 4 * number


def test_nothing_is_on_the_device_before_it_is_sent() -> None:
    memory = StepMemory(CPU)
    place = memory.reserve(1)
    memory.begin()
    memory.at(place, 1)[:] = 7
    assert not memory.on_device.any()
    memory.send()
    assert memory.on_device[place] == 7


def test_a_step_that_begins_again_takes_the_same_places() -> None:
    memory = StepMemory(CPU, spare=8)
    places = []
    for _ in range(3):
        memory.begin()
        places.append(memory.take(8))
    assert len(set(places)) == 1


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5, dtype=np.int64),
        np.array([[1.5, -2.0], [3.0, 4.0]], dtype=np.float32),
        np.array([True, False, True]),
        np.zeros((0, 3), dtype=np.float64),
        np.arange(12, dtype=np.int32).reshape(3, 4).T,
    ],
    ids=["int64", "float32", "bool", "none", "strided"],
)
def test_arrays_of_any_type_go_over(array: Any) -> None:
    memory = StepMemory(CPU, spare=100)
    memory.begin()
    memory.append(np.ones(1, dtype=np.int8))
    tensor = memory.append(array)
    memory.send()
    assert torch.equal(tensor, torch.from_numpy(array.copy()))
    assert (
        memory.on_device.data_ptr() <= tensor.data_ptr() < memory.on_device.data_ptr() + memory.on_device.nbytes
        or not array.size
    )


def test_what_exceeds_the_memory_is_a_mistake() -> None:
    memory = StepMemory(CPU, spare=8)
    memory.begin()
    memory.take(8)
    with pytest.raises(AssertionError, match="beyond the limits"):
        memory.take(1)
    with pytest.raises(AssertionError, match="reserved after the first step"):
        memory.reserve(1)


def test_a_buffer_is_written_again_once_its_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose copies run behind: they read the host's memory when they get there."""
    copies: list[Any] = []

    class Event:
        def record(self, stream: Any) -> None:
            self.copy = copies[-1]

        def synchronize(self) -> None:
            if hasattr(self, "copy"):
                self.copy()

    class Buffer(step_memory._HostBuffer):
        def __init__(self, size: int, device: torch.device) -> None:
            super().__init__(size, CPU)
            self._sent = Event()  # type: ignore[assignment]

        def send(self, there: torch.Tensor, count: int) -> None:
            done: list[bool] = []

            def copy() -> None:
                if not done:
                    done.append(True)
                    there[:count].copy_(self._pinned[:count])

            copies.append(copy)
            self._sent.record(None)  # type: ignore[union-attr]

    monkeypatch.setattr(step_memory, "_HostBuffer", Buffer)
    memory = StepMemory(CPU)
    memory.device = SimpleNamespace(type="cuda")  # type: ignore[assignment]
    place = memory.reserve(1)
    monkeypatch.setattr(torch, "zeros", lambda size, **_: torch.full((size,), 0, dtype=torch.int32))
    found = []
    for number in range(8):
        memory.begin()
        memory.at(place, 1)[:] = number
        memory.send()
        if number >= 2:  # the device is two steps behind
            copies[number - 2]()
            found.append(int(memory.on_device[place]))
    assert found == list(range(6))
