"""The engine's process: takes commands, runs steps, sends events.

The API process starts it, with the arguments that `wire/launch.py` describes.
"""

import gc
import logging
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import msgspec

from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.peft.memory import is_out_of_memory

from ..logs import set_up_logging
from ..wire.engine_socket import EngineSocket
from ..wire.launch import exit_with_parent, parse_engine_arguments
from ..wire.messages import (
    AbortRequest,
    AdapterLevel,
    AddRequest,
    Beat,
    Command,
    EngineFailed,
    EngineStats,
    InspectAdapter,
    LoadAdapter,
    Outputs,
    PinAdapters,
    ReleaseAdapter,
    Reply,
    SequenceOutput,
    Shutdown,
)
from .engine import Engine
from .faults import of_adapter, of_step
from .model.errors import UnservableModel
from .requests import ended_by

logger = logging.getLogger(__name__)

STATS_SECONDS = 0.25
LIST_SECONDS = 5.0
BUSY_POLL_SECONDS = 0.002  # while only a load or an inspection is awaited
IDLE_POLL_SECONDS = 0.5
BEAT_SECONDS = 0.5
CHECK_SHARE = 0.01  # of the time, for comparing the books when there is nothing to do
SWITCH_SECONDS = 0.0001  # for which a thread that loads an adapter may keep the interpreter from the steps


class EngineLoop:
    """The loop that a process runs until `Shutdown`: it polls the socket, steps the engine, and sends what is new."""

    def __init__(self, engine: Engine, socket: EngineSocket) -> None:
        self._engine = engine
        self._socket = socket
        self._running = True
        self._calls: dict[int, Future[AdapterFacts] | Future[AdapterLevel] | Future[None]] = {}
        self._stats_due = 0.0
        self._stats_are_final = False
        self._beat_due = 0.0
        self._check_due = 0.0
        self._listed_changes = -1  # of the host's adapters, when they were listed last
        self._list_due = 0.0

    def run(self) -> None:
        """Run until `Shutdown`."""
        while self._running:
            for command in self._socket.poll(self._patience()):
                self._handle(command)
            self._advance()
            self._account()
            self._beat()

    def _advance(self) -> None:
        """Run a step, or what an idle engine does. Where memory is wanting, what runs ends, and the engine goes on.

        Raises what else goes wrong, and AssertionError where the books do not agree after that: the process ends.
        """
        failed = self._engine.num_failed_steps
        try:
            if self._engine.has_work():
                self._send_outputs(self._engine.step())
            else:
                self._engine.poll()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.exception("memory is wanting outside of a step")
            self._send_outputs(self._engine.fail_all(of_step(error)))
        if self._engine.num_failed_steps != failed:
            self._check_due = 0.0
            self._check_integrity()

    def _account(self) -> None:
        """Send what has changed beside the outputs; where there is no memory for it, the next time."""
        try:
            self._reply_to_finished()
            self._send_stats()
        except MemoryError:
            logger.warning("there is no memory for statistics; they are sent later")

    def _patience(self) -> float:
        if self._engine.has_work():
            return 0.0
        return BUSY_POLL_SECONDS if self._is_awaited() else IDLE_POLL_SECONDS

    def _is_awaited(self) -> bool:
        """Return whether a load or a call will change something without a step."""
        return bool(self._calls or self._engine.adapters.is_busy())

    def _handle(self, command: Command) -> None:
        match command:
            case AddRequest():
                self._add(command)
            case AbortRequest(request_id):
                self._engine.abort(request_id)
            case InspectAdapter(call_id, digest, path, tenant):
                self._calls[call_id] = self._engine.start_inspection(digest, Path(path), tenant)
            case ReleaseAdapter(call_id, digest):
                self._calls[call_id] = self._engine.start_release(digest)
            case LoadAdapter(call_id, digest):
                self._calls[call_id] = self._engine.start_load(digest)
            case PinAdapters(call_id, digests):
                self._calls[call_id] = self._engine.start_pinning(digests)
            case Shutdown():
                self._running = False

    def _add(self, request: AddRequest) -> None:
        try:
            self._engine.add_request(request)
        except ValueError as error:
            self._send_outputs([SequenceOutput(request_id=request.request_id, token_ids=[], error=str(error))])
        except MemoryError as error:
            logger.exception("there is no memory to queue a request")
            self._send_outputs([ended_by(request.request_id, of_step(error))])

    def _send_outputs(self, outputs: list[SequenceOutput]) -> None:
        if outputs:
            self._socket.send(Outputs(outputs))

    def _reply_to_finished(self) -> None:
        replies = [_reply(call_id, call) for call_id, call in self._calls.items() if call.done()]
        if any(reply.facts is None and reply.error is None for reply in replies):  # what the device holds has changed
            self._send_stats(now=True)
        for reply in replies:
            del self._calls[reply.call_id]
            self._socket.send(reply)
        if replies:  # what began and ended within one turn has changed the statistics, too
            self._stats_are_final = False

    def _send_stats(self, now: bool = False) -> None:
        """Send statistics a few times a second while the engine is active, and once more when it goes idle."""
        active = self._engine.has_work() or self._is_awaited()
        due = time.monotonic() >= self._stats_due if active else not self._stats_are_final
        if due or now:
            self._socket.send(self._stats())
            self._stats_due = time.monotonic() + STATS_SECONDS
        if due and not active:
            self._check_integrity()
        self._stats_are_final = not active

    def _beat(self) -> None:
        """Tell that the loop turns, which an idle engine's does as often as it polls."""
        if (now := time.monotonic()) >= self._beat_due:
            self._socket.send(Beat())
            self._beat_due = now + BEAT_SECONDS

    def _stats(self) -> EngineStats:
        """Return the statistics, with the list of the host's adapters only when it has changed and every LIST_SECONDS.

        A list of ten thousand takes 3 ms to send; processes that have connected since the last one need it, too.
        """
        stats, changes = self._engine.stats(), self._engine.adapters.residency.host.num_changes
        if changes == self._listed_changes and time.monotonic() < self._list_due:
            return msgspec.structs.replace(stats, host_adapters=[], host_unchanged=True)
        self._listed_changes, self._list_due = changes, time.monotonic() + LIST_SECONDS
        return stats

    def _check_integrity(self) -> None:
        """Check the engine's books, at most CHECK_SHARE of the time: a request may have to wait for it.

        With ten thousand adapters on the host it takes 10 ms.
        """
        if (start := time.monotonic()) < self._check_due:
            return
        try:
            self._engine.check_integrity()
        except AssertionError:
            logger.exception("the engine's books do not agree")
        self._check_due = start + (time.monotonic() - start) / CHECK_SHARE


def _reply(call_id: int, call: Future[AdapterFacts] | Future[AdapterLevel] | Future[None]) -> Reply:
    raised = call.exception()
    if raised is None:
        result = call.result()
        return Reply(call_id, level=result) if isinstance(result, str) else Reply(call_id, facts=result)
    error = of_adapter(raised)
    return Reply(call_id, error_kind=type(error).__name__, error=error.message, error_param=error.param)


def _calm_interpreter() -> None:
    """Keep steps from waiting for the interpreter.

    Garbage collection no longer looks at the model and its libraries, which takes 0.2 s, and the thread that compiles
    adapters gives the interpreter back sooner.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def main(arguments: Sequence[str]) -> int:
    """Run the process. Returns exit status 0 after `Shutdown`, 1 if the engine failed."""
    door, config = parse_engine_arguments(arguments)
    set_up_logging(config.log_level)
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
