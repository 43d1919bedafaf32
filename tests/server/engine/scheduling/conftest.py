"""Sequences without an engine."""

import itertools
from collections.abc import Callable, Sequence

import pytest

from peftserve.server.engine.scheduling.sequence import Sequence as EngineSequence
from peftserve.server.wire.messages import SamplingParams, WeightedAdapter

MakeSequence = Callable[..., EngineSequence]


@pytest.fixture(scope="session")
def make_sequence() -> MakeSequence:
    """Makes sequences that arrive one after another; adapters by their digests."""
    arrivals = itertools.count()

    def make(
        prompt: Sequence[int] = (1,),
        adapters: Sequence[str] = (),
        salt: str = "",
        priority: int = 0,
        tenant: str = "",
        weight: float = 1.0,
        queue_timeout: float | None = None,
        **sampling: object,
    ) -> EngineSequence:
        arrival = next(arrivals)
        return EngineSequence(
            request_id=f"sequence-{arrival}",
            prompt=list(prompt),
            sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
            adapters=tuple(WeightedAdapter(digest) for digest in adapters),
            salt=salt,
            seed=0,
            eos_token_ids=frozenset(),
            arrival=arrival,
            priority=priority,
            tenant=tenant,
            weight=weight,
            queue_timeout=queue_timeout,
        )

    return make
