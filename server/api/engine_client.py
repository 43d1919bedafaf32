"""The engine as the HTTP side sees it: sequences in, outputs back, calls with replies, one clear error when it dies.

Knows the messages; does not know HTTP, names of adapters, or text.
"""

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import msgspec

from peftserve.adapters import errors

from ..config import EngineConfig
from ..wire.launch import engine_command
from ..wire.messages import (
    AbortRequest,
    AdapterCard,
    AddRequest,
    Command,
    EngineFailed,
    EngineStats,
    Event,
    InspectAdapter,
    ModelInfo,
    Outputs,
    ReleaseAdapter,
    Reply,
    SequenceOutput,
    Shutdown,
)
from .engine import EngineDead, StatsListener
from .engine_process import CommandMaker, EngineProcess
from .mailbox import Mailbox

logger = logging.getLogger(__name__)

SHUTDOWN_PATIENCE = 10.0  # seconds that an engine may take to leave its step loop

Outbox = Mailbox[SequenceOutput | EngineDead]


class EngineClient:
    """One engine process. `start` first; every method belongs to the event loop that called it."""

    def __init__(self, config: EngineConfig, make_command: CommandMaker = engine_command) -> None:
        self.info: ModelInfo | None = None  # set by the engine's first event
        self.stats = EngineStats()
        self._config = config
        self._make_command = make_command
        self._process: EngineProcess | None = None  # set by launch()
        self._loaded: asyncio.Future[ModelInfo] | None = None  # set by launch()
        self._dead: EngineDead | None = None  # set when the engine ends, for good
        self._tasks: list[asyncio.Task[None]] = []
        self._mailboxes: dict[str, Outbox] = {}
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._call_ids = itertools.count(1)
        self._listeners: list[StatsListener] = []

    @property
    def alive(self) -> bool:
        return self._process is not None and self._dead is None

    @property
    def num_sequences(self) -> int:
        return len(self._mailboxes)

    def add_stats_listener(self, listener: StatsListener) -> None:
        self._listeners.append(listener)

    async def launch(self) -> None:
        """Starts the process without waiting for its model. Raises OSError."""
        self._loaded = asyncio.get_running_loop().create_future()
        # Whether or not anyone waits for the model, its failure is no unhandled exception.
        self._loaded.add_done_callback(lambda future: future.exception())
        self._process = await EngineProcess.start(self._config, self._make_command)
        self._tasks = [
            asyncio.create_task(self._receive(self._process), name="engine-events"),
            asyncio.create_task(self._watch(self._process), name="engine-exit"),
        ]

    async def start(self) -> ModelInfo:
        """Starts the process, unless `launch` has, and waits until the model is loaded. Raises EngineDead, OSError."""
        if self._loaded is None:
            await self.launch()
        assert self._loaded is not None
        return await asyncio.shield(self._loaded)

    async def generate(self, request: AddRequest) -> AsyncGenerator[list[SequenceOutput]]:
        mailbox: Outbox = Mailbox()
        self._send(request)
        self._mailboxes[request.request_id] = mailbox
        ended = False
        try:
            while not ended:
                outputs, death = _split(await mailbox.take())
                if outputs:
                    ended = outputs[-1].finish_reason is not None or outputs[-1].error is not None
                    if ended:
                        self._mailboxes.pop(request.request_id, None)
                    yield outputs
                if death is not None and not ended:
                    raise EngineDead(*death.args)
        finally:
            self._mailboxes.pop(request.request_id, None)
            if not ended and self.alive:
                self._send(AbortRequest(request.request_id))

    async def inspect_adapter(self, digest: str, path: Path) -> AdapterCard:
        reply = await self._call(InspectAdapter(next(self._call_ids), digest, str(path)))
        if reply.card is None:
            raise _adapter_error(reply)
        return reply.card

    async def release_adapter(self, digest: str) -> None:
        reply = await self._call(ReleaseAdapter(next(self._call_ids), digest))
        if reply.error is not None:
            raise _adapter_error(reply)

    async def shutdown(self) -> None:
        """Ends the engine: asks first, then insists. Open sequences and calls get EngineDead. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        # An engine that still loads its model hears nothing; one that is dead has nothing left to do.
        asked = self._dead is None and self.info is not None
        if asked:
            process.socket.send(Shutdown())
        self._die("the server is shutting down")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await process.stop(SHUTDOWN_PATIENCE if asked else 0)
        process.close()

    def _send(self, command: Command) -> None:
        if self._process is None or self._dead is not None:
            raise EngineDead(*(self._dead.args if self._dead else ("the engine is not running",)))
        self._process.socket.send(command)

    async def _call(self, command: InspectAdapter | ReleaseAdapter) -> Reply:
        self._send(command)
        reply: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[command.call_id] = reply
        try:
            return await reply
        finally:
            self._calls.pop(command.call_id, None)

    async def _receive(self, process: EngineProcess) -> None:
        try:
            while True:
                self._dispatch(await process.socket.receive())
        except msgspec.MsgspecError as error:
            self._die(f"the engine does not speak this server's language: {error}")
        except Exception as error:
            # Nobody would hear of later outputs: an error for all is better than silence.
            logger.exception("An engine's message could not be handled")
            self._die(f"an engine's message could not be handled: {error!r}")

    def _dispatch(self, event: Event) -> None:
        match event:
            case Outputs():
                self._deliver(event)
            case EngineStats():
                self.stats = event
                for listener in self._listeners:
                    listener(event)
            case Reply():
                if (call := self._calls.get(event.call_id)) is not None and not call.done():
                    call.set_result(event)
            case ModelInfo():
                self._begin(event)
            case EngineFailed():
                self._die(event.message)

    def _begin(self, info: ModelInfo) -> None:
        assert self._loaded is not None
        assert self._process is not None
        self.info = info
        self._process.forget_folder()
        if not self._loaded.done():
            self._loaded.set_result(info)

    def _deliver(self, event: Outputs) -> None:
        for output in event.outputs:
            mailbox = self._mailboxes.get(output.request_id)
            if mailbox is not None:
                mailbox.put(output)

    async def _watch(self, process: EngineProcess) -> None:
        code = await process.wait()
        # What the engine said last may still be on its way through the socket.
        await asyncio.sleep(0.05)
        self._die(f"the engine process has ended with exit code {code}")

    def _die(self, message: str) -> None:
        if self._dead is not None:
            return
        if self._process is not None:
            logger.error("The engine is gone: %s", message)
        self._dead = EngineDead(message)
        for mailbox in self._mailboxes.values():
            mailbox.put(self._dead)
        waiting: list[asyncio.Future[Reply] | asyncio.Future[ModelInfo]] = [*self._calls.values()]
        if self._loaded is not None:
            waiting.append(self._loaded)
        for future in waiting:
            if not future.done():
                future.set_exception(EngineDead(message))


def _split(taken: list[SequenceOutput | EngineDead]) -> tuple[list[SequenceOutput], EngineDead | None]:
    """The outputs, and the engine's death where it came behind them."""
    death = taken.pop() if isinstance(taken[-1], EngineDead) else None
    return cast(list[SequenceOutput], taken), cast(EngineDead | None, death)


def _adapter_error(reply: Reply) -> errors.AdapterError:
    """The error of adapters/errors.py that the engine met; a kind that this side does not know is the base class."""
    kind = getattr(errors, reply.error_kind or "", errors.AdapterError)
    known = isinstance(kind, type) and issubclass(kind, errors.AdapterError)
    return (kind if known else errors.AdapterError)(reply.error or "the adapter was refused", param=reply.error_param)
