"""What the HTTP side needs of an engine. `EngineClient` is the real one; tests bring their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from peftserve.adapters.facts import AdapterFacts

from ...wire.messages import AddRequest, EngineStats, ModelInfo, SequenceOutput

StatsListener = Callable[[EngineStats], None]


class EngineDead(Exception):
    """The engine process has ended or cannot start. The message is for the operator, not for clients."""


class Sink(Protocol):
    """Where the outputs of one sequence go, each at once when it comes."""

    def push(self, output: SequenceOutput) -> None:
        """The last has a finish reason or an error. Raises nothing."""

    def fail(self, death: EngineDead) -> None:
        """In place of all that would have come."""


class RemoteEngine(Protocol):
    """One model that answers sequences; of adapters it knows digests only."""

    @property
    def info(self) -> ModelInfo | None:
        """None while the model loads."""

    @property
    def alive(self) -> bool:
        """The process runs, whether or not it has loaded its model."""

    @property
    def stats(self) -> EngineStats:
        """The newest that the engine has sent."""

    def add_stats_listener(self, listener: StatsListener) -> None:
        """Calls `listener` with every `EngineStats` from now on."""

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence. Raises EngineDead."""

    def abort(self, request_id: str) -> None:
        """Forget a sequence: its sink hears nothing more. An unknown id is fine: it may have ended."""

    async def inspect_adapter(self, digest: str, path: Path) -> AdapterFacts:
        """Raises one of adapters/errors.py, or EngineDead."""

    async def release_adapter(self, digest: str) -> None:
        """Returns when the adapter has left the device and the host. Raises EngineDead."""
