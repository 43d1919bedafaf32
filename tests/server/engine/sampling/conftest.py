"""A device for tests without one: memory that would be pinned, and an event that would be recorded."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor

from peftserve.server.engine import staging


class Event:
    def synchronize(self) -> None:
        pass


@pytest.fixture
def pinned(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All memory that was asked for as pinned."""
    taken: list[Tensor] = []

    def take(size: int) -> Tensor:
        taken.append(torch.zeros(size, dtype=torch.uint8))
        return taken[-1]

    monkeypatch.setattr(staging, "_pinned", take)
    monkeypatch.setattr(staging, "_event", lambda device: Event())
    return taken


@pytest.fixture
def unseen(pinned: list[Tensor]) -> Callable[[], AbstractContextManager[None]]:
    """Within it, the CPU is taken for a device that the host has to wait for."""

    @contextmanager
    def patched() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(staging, "is_host", lambda device: False)
            yield

    return patched
