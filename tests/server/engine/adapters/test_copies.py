"""Copies beside the steps, on streams that say in which order the device gets its work."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch

from peftserve.server.engine.adapters.copies import HostCopies, StreamCopies, make_copies


class Device:
    """Its work, as it is enqueued: (stream, what)."""

    def __init__(self) -> None:
        self.work: list[tuple[str, str]] = []
        self.current = "steps"
        self.done: set[str] = set()

    def enqueue(self, what: str) -> None:
        self.work.append((self.current, what))


class Stream:
    def __init__(self, device: Device, name: str) -> None:
        self._device, self.name = device, name

    def record_event(self) -> "Event":
        self._device.work.append((self.name, "record"))
        return Event(self._device, self.name)

    def wait_event(self, event: "Event") -> None:
        self._device.work.append((self.name, f"wait for {event.name}"))

    def synchronize(self) -> None:
        raise AssertionError("a thread waits for the device")


class Event:
    def __init__(self, device: Device, name: str) -> None:
        self._device, self.name = device, name

    def query(self) -> bool:
        return self.name in self._device.done

    synchronize = Stream.synchronize


class Arena:
    """Notes the copies into it. Otherwise a tensor on the device."""

    is_cuda, device = True, "cuda"

    def __init__(self, device: Device) -> None:
        self._device = device

    def __getitem__(self, place: slice) -> "Arena":
        self._place = place
        return self

    def copy_(self, data: torch.Tensor, *, non_blocking: bool) -> None:
        assert non_blocking
        assert self._place.stop - self._place.start == data.numel()
        self._device.enqueue(f"copy to {self._place.start}")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """Under the names of torch.cuda."""
    device = Device()

    @contextmanager
    def enter(stream: Stream) -> Iterator[None]:
        before, device.current = device.current, stream.name
        yield
        device.current = before

    for name, value in {
        "Stream": lambda _: Stream(device, "copies"),
        "current_stream": lambda _: Stream(device, device.current),
        "stream": enter,
        "synchronize": Stream.synchronize,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return device


def test_copies_begin_behind_the_steps_and_no_step_waits_for_them(device: Device) -> None:
    copies = make_copies(cast(Any, Arena(device)))
    assert isinstance(copies, StreamCopies)
    device.enqueue("step 1")
    copy = copies.behind_steps()
    device.enqueue("step 2")
    end = copy([(torch.zeros(4), 8), (torch.zeros(2), 32)])
    device.enqueue("step 3")
    assert [what for stream, what in device.work if stream == "steps"] == ["step 1", "record", "step 2", "step 3"]
    assert [what for stream, what in device.work if stream == "copies"] == [
        "wait for steps",
        "copy to 8",
        "copy to 32",
        "record",
    ]
    assert end is not None
    assert not end.query()
    device.done.add("copies")
    assert end.query()


def test_in_host_memory_a_copy_is_there_at_once() -> None:
    arena = torch.full((16,), float("nan"))
    copies = make_copies(arena)
    assert isinstance(copies, HostCopies)
    assert copies.behind_steps()([(torch.ones(4), 8), (torch.zeros(2), 0)]) is None
    assert arena[8:12].tolist() == [1.0] * 4
    assert arena[:2].tolist() == [0.0] * 2
    assert arena.isnan().sum() == 10
