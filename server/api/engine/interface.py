"""The interface of an engine as the API uses it. `EngineClient` implements it; tests bring their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from peftserve.adapters.facts import AdapterFacts

from ...wire.messages import AddRequest, EngineStats, ModelInfo, SequenceOutput

StatsListener = Callable[[EngineStats], None]


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
        """Return whether the process runs, whether or not it has loaded its model."""

    @property
    def stats(self) -> EngineStats:
        """Return the newest statistics that the engine has sent."""

    def add_stats_listener(self, listener: StatsListener) -> None:
        """Call `listener` with every `EngineStats` from now on."""

    def submit(self, request: AddRequest, sink: Sink) -> None:
        """Begin a sequence, whose outputs go to `sink`. Raises EngineDead."""

    def abort(self, request_id: str) -> None:
        """End a sequence, of which its sink hears nothing more. An unknown id is ignored: it may have ended."""

    async def inspect_adapter(self, digest: str, path: Path) -> AdapterFacts:
        """Return the facts of an adapter's files in the folder `path`. Raises AdapterError, EngineDead."""

    async def release_adapter(self, digest: str) -> None:
        """Return when the adapter has left the device and the host. Raises AdapterError, EngineDead."""
