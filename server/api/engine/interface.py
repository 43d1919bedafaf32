"""The interface of an engine as the API uses it. `EngineClient` implements it; tests bring their own."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypedDict, Unpack

from peftserve.adapters.facts import AdapterFacts

from ...wire.messages import (
    AdapterLevel,
    AddRequest,
    EngineStats,
    ModelInfo,
    Pooling,
    SequenceOutput,
    WeightedAdapter,
)

MEAN = Pooling()
StatsListener = Callable[[EngineStats], None]


class Asked(TypedDict, total=False):
    """The fields of `AddRequest` that say who asks, and how soon it wants to be served."""

    tenant: str
    weight: float
    queue_timeout: float | None
    priority: int


class EngineDead(Exception):
    """The engine process has ended or cannot start. The message is for the operator, not for clients."""


class Sink(Protocol):
    """The receiver of one sequence's outputs, each as soon as it arrives."""

    def push(self, output: SequenceOutput) -> None:
        """Take an output; the last one has a finish reason or an error. Must not raise."""

    def fail(self, death: EngineDead) -> None:
        """End the sequence with the engine's death, in place of its remaining outputs. Must not raise."""


class RemoteEngine(Protocol):
    """One model in another process that answers sequences; it knows adapters by their digests only."""

    @property
    def info(self) -> ModelInfo | None:
        """Return the facts of the model, or None while it loads."""

    @property
    def alive(self) -> bool:
        """Return whether a process runs, whether or not it has loaded its model."""

    @property
    def silence(self) -> float:
        """Return the seconds without a sign of life; of an engine that has ended, those since then."""

    @property
    def stats(self) -> EngineStats:
        """Return the newest statistics that the engine has sent; empty ones once it has ended."""

    @property
    def stats_age(self) -> float:
        """Return the seconds since a message said what the statistics are, or that they are as before."""

    @property
    def restarts(self) -> int:
        """Return how many engines this process has started in place of another."""

    def add_stats_listener(self, listener: StatsListener) -> None:
        """Call `listener` with every `EngineStats` from now on."""

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, whose outputs go to `sink`. Raises EngineDead."""

    def abort(self, request_id: str) -> None:
        """End a sequence, of which its sink hears nothing more. An unknown id is ignored: it may have ended."""

    async def inspect_adapter(self, digest: str, path: Path, tenant: str = "") -> AdapterFacts:
        """Return the facts of an adapter's files in the folder `path`. Raises AdapterError, EngineDead."""

    async def release_adapter(self, digest: str) -> None:
        """Return when the adapter has left the device and the host. Raises AdapterError, EngineDead."""

    async def load_adapter(self, digest: str) -> AdapterLevel:
        """Bring an adapter to the device, ahead of use.

        Returns `device` when it is there, or `host` if no slot has become free within seconds. Raises AdapterError,
        EngineDead.
        """

    async def pin_adapters(self, digests: Iterable[str]) -> None:
        """Load these adapters and never evict them, and no others from now on. New ones are taken in their order.

        Raises AdapterError for what cannot be pinned, which names the bound if that is why; the others are. EngineDead.
        """

    async def embed(
        self,
        prompt: Sequence[int],
        pooling: Pooling = MEAN,
        adapters: Sequence[WeightedAdapter] = (),
        salt: str = "",
        **asked: Unpack[Asked],
    ) -> list[float]:
        """Return one vector for a prompt of token ids: its hidden states, pooled. Of the base, without adapters.

        Its pages serve later requests with the same prompt, adapters and salt. asked: by whom; without it the server
        itself asks. Raises ValueError for a prompt or a layer that this model cannot take, AdapterError, EngineDead.
        """
