"""The engine's process: commands in, steps, events out.

Started by the API process; `wire/launch.py` says with what.
"""

import gc
import logging
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.facts import AdapterFacts

from ..wire.engine_socket import EngineSocket
from ..wire.launch import exit_with_parent, parse_engine_arguments
from ..wire.messages import (
    AbortRequest,
    AddRequest,
    Command,
    EngineFailed,
    EngineStats,
    InspectAdapter,
    Outputs,
    ReleaseAdapter,
    Reply,
    SequenceOutput,
    Shutdown,
)
from .engine import Engine
from .model.errors import UnservableModel

logger = logging.getLogger(__name__)

STATS_SECONDS = 0.25
LIST_SECONDS = 5.0
BUSY_POLL_SECONDS = 0.002  # while only a load or an inspection is awaited
IDLE_POLL_SECONDS = 0.5
CHECK_SHARE = 0.01  # of the time, for comparing the books when there is nothing to do
SWITCH_SECONDS = 0.0001  # for which a thread that loads an adapter may keep the interpreter from the steps


class EngineLoop:
    def __init__(self, engine: Engine, socket: EngineSocket) -> None:
        self._engine = engine
        self._socket = socket
        self._running = True
        self._inspections: dict[int, Future[AdapterFacts]] = {}
        self._releases: dict[int, Future[None]] = {}
        self._stats_due = 0.0
        self._stats_are_final = False
        self._check_due = 0.0
        self._listed_changes = -1  # of the host's adapters, when they were listed last
        self._list_due = 0.0

    def run(self) -> None:
        """Until `Shutdown`."""
        while self._running:
            for command in self._socket.poll(self._patience()):
                self._handle(command)
            if self._engine.has_work():
                self._send_outputs(self._engine.step())
            else:
                self._engine.poll()
            self._reply_to_finished()
            self._send_stats()

    def _patience(self) -> float:
        if self._engine.has_work():
            return 0.0
        return BUSY_POLL_SECONDS if self._is_awaited() else IDLE_POLL_SECONDS

    def _is_awaited(self) -> bool:
        """Whether a load, an inspection or a release will change something without a step."""
        return bool(self._inspections or self._releases or self._engine.adapters.is_busy())

    def _handle(self, command: Command) -> None:
        match command:
            case AddRequest():
                self._add(command)
            case AbortRequest(request_id):
                self._engine.abort(request_id)
            case InspectAdapter(call_id, digest, path):
                self._inspections[call_id] = self._engine.start_inspection(digest, Path(path))
            case ReleaseAdapter(call_id, digest):
                self._releases[call_id] = self._engine.start_release(digest)
            case Shutdown():
                self._running = False

    def _add(self, request: AddRequest) -> None:
        try:
            self._engine.add_request(request)
        except ValueError as error:
            self._send_outputs([SequenceOutput(request_id=request.request_id, token_ids=[], error=str(error))])

    def _send_outputs(self, outputs: list[SequenceOutput]) -> None:
        if outputs:
            self._socket.send(Outputs(outputs))

    def _reply_to_finished(self) -> None:
        for call_id in [i for i, inspection in self._inspections.items() if inspection.done()]:
            self._socket.send(_inspection_reply(call_id, self._inspections.pop(call_id)))
        for call_id in [i for i, release in self._releases.items() if release.done()]:
            del self._releases[call_id]
            self._send_stats(now=True)
            self._socket.send(Reply(call_id))

    def _send_stats(self, now: bool = False) -> None:
        """A few times a second while something goes on, and once more when it has ended."""
        active = self._engine.has_work() or self._is_awaited()
        due = time.monotonic() >= self._stats_due if active else not self._stats_are_final
        if due or now:
            self._socket.send(self._stats())
            self._stats_due = time.monotonic() + STATS_SECONDS
        if due and not active:
            self._check_integrity()
        self._stats_are_final = not active

    def _stats(self) -> EngineStats:
        """The host's adapters are listed when they have changed, and now and then for who has come since: a list of ten
        thousand takes 3 ms from one end to the other.
        """
        stats, changes = self._engine.stats(), self._engine.adapters.residency.host.num_changes
        if changes == self._listed_changes and time.monotonic() < self._list_due:
            return msgspec.structs.replace(stats, host_adapters=[], host_unchanged=True)
        self._listed_changes, self._list_due = changes, time.monotonic() + LIST_SECONDS
        return stats

    def _check_integrity(self) -> None:
        """Not each time: a request that comes may wait for it, 10 ms where ten thousand adapters are on the host."""
        if (start := time.monotonic()) < self._check_due:
            return
        try:
            self._engine.check_integrity()
        except AssertionError:
            logger.exception("the engine's books do not agree")
        self._check_due = start + (time.monotonic() - start) / CHECK_SHARE


def _inspection_reply(call_id: int, inspection: Future[AdapterFacts]) -> Reply:
    error = inspection.exception()
    if error is None:
        return Reply(call_id, facts=inspection.result())
    if isinstance(error, AdapterError):
        return Reply(call_id, error_kind=type(error).__name__, error=error.message, error_param=error.param)
    logger.error("an adapter's inspection failed", exc_info=error)
    return Reply(call_id, error_kind="InvalidAdapter", error="the adapter could not be read", error_param="files")


def _calm_interpreter() -> None:
    """No step waits for a search of all that the model and its libraries have made, which takes 0.2 s, nor long for the
    thread that compiles adapters.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Exit status 0 after `Shutdown`, 1 if the engine failed or the parent has gone."""
    door, config = parse_engine_arguments(arguments)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C is for the API process, which drains and then says Shutdown
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    exit_with_parent()
    socket = EngineSocket(door)
    try:
        engine = Engine(config)
        socket.send(engine.info)
        _calm_interpreter()
        EngineLoop(engine, socket).run()
        engine.close()
    except UnservableModel as error:  # the API process says why
        socket.send(EngineFailed(f"this model cannot be served: {error}"))
        return 1
    except Exception as error:
        logger.exception("the engine failed")
        socket.send(EngineFailed(f"{type(error).__name__}: {error}"))
        return 1
    finally:
        socket.close()
        gc.unfreeze()  # what is never collected, native libraries report as leaks
    return 0
