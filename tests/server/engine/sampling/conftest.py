"""Sequences on seats; and a device for tests without one: memory that would be pinned, and events."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor

from peftserve.server.engine import staging
from peftserve.server.engine.sampling import PendingTokens, Sampler, SampleRow, SamplingMetadata


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


@pytest.fixture(scope="session")
def prepare() -> Callable[[Sampler, Sequence[SampleRow]], SamplingMetadata]:
    """Takes a seat for each row, and makes the step in which each gets the token behind its output."""

    def prepare_rows(sampler: Sampler, rows: Sequence[SampleRow]) -> SamplingMetadata:
        for seat, row in enumerate(rows):
            sampler.seat(seat, row)
        ends = [row.num_before + len(row.output_token_ids) for row in rows]
        return sampler.prepare(np.arange(len(rows)), np.array(ends, np.int64))

    return prepare_rows


@pytest.fixture(scope="session")
def start(prepare: Callable[..., SamplingMetadata]) -> Callable[[Sampler, Tensor, Sequence[SampleRow]], PendingTokens]:
    """Starts to sample rows of logits, each as its row says."""
    return lambda sampler, logits, rows: sampler.start(logits, prepare(sampler, rows))
