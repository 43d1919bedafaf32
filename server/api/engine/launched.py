"""The client of an engine that this process launches, starts again when it dies or hangs, and ends with the server."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import NoReturn

from ...config import EngineConfig
from ...wire.launch import engine_command
from ...wire.messages import ModelInfo, Shutdown
from .client import EngineClient
from .connection import SHUTTING_DOWN
from .interface import EngineDead
from .process import CommandMaker, EngineProcess
from .pulse import Vitals
from .vitals import vitals_of

logger = logging.getLogger(__name__)

SHUTDOWN_PATIENCE = 10.0  # seconds that an engine may take to leave its step loop
EXIT_PATIENCE = 1.0  # seconds from the end of its connection to that of the process
LAST_CHANCE = 2.0  # seconds for which the server is not live before it kills an engine
SHORT_LIFE = 60.0  # seconds; of engines that answer for less, each is started later than the one before
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0


class LaunchedEngine(EngineClient):
    """The client of the primary process, which owns the engine's process. Call `start` first.

    patience: seconds without a sign of life after which a process is taken for hung; 0 for never.
    """

    def __init__(
        self, config: EngineConfig, make_command: CommandMaker = engine_command, *, patience: float = 0.0
    ) -> None:
        super().__init__()
        self._config = config
        self._make_command = make_command
        self._patience = patience
        self._process: EngineProcess | None = None  # set by launch()
        self._over = asyncio.Event()  # set when the engine of now has ended or hangs
        self._in_vain = 0  # engines in a row that have answered for less than SHORT_LIFE
        self._has_failed = False  # whether the last start has
        self._closed = False

    async def launch(self) -> None:
        """Start the process without waiting for its model. Raises OSError."""
        self._over.clear()
        self._process = await EngineProcess.start(self._config, self._make_command)
        await self.attach(self._process.connect())

    async def start(self) -> ModelInfo:
        """Start the process, unless `launch` has, and wait for its model. Raises EngineDead, OSError."""
        if self._closed:
            raise EngineDead(SHUTTING_DOWN)
        if self._process is None:
            await self.launch()
        return await self.loaded()

    async def over(self) -> EngineDead:
        """Wait until the engine of now has ended or hangs. Returns what was wrong."""
        await self._over.wait()
        assert self._connection is not None
        assert self._connection.dead is not None
        return self._connection.dead

    async def keep(self, launched: Callable[[], None]) -> NoReturn:
        """Start the engine anew whenever it is over, each time later if that is of no use, until this is cancelled.

        launched: called with each new process that takes connections; where the start before it has failed, when its
        model answers.
        """
        while True:
            answered_since = time.monotonic()
            await self.over()
            self._in_vain = self._in_vain + 1 if time.monotonic() - answered_since < SHORT_LIFE else 0
            while not await self._starts_again(launched):
                self._in_vain += 1

    async def _starts_again(self, launched: Callable[[], None]) -> bool:
        """Start one engine in place of another, after a pause. Returns whether its model answers."""
        await self._bury()
        await asyncio.sleep(min(FIRST_PAUSE * 2 ** (self._in_vain - 1), LONGEST_PAUSE) if self._in_vain else 0)
        self.restarts += 1
        logger.warning("The engine is started again")
        try:
            await self._load(launched)
        except (EngineDead, OSError) as error:
            self._has_failed = True
            logger.error("The engine does not start: %s", " ".join(str(error).split()))
            return False
        self._has_failed = False
        logger.warning("The engine answers again")
        return True

    async def _load(self, launched: Callable[[], None]) -> None:
        await self.launch()
        if not self._has_failed:
            launched()
        await self.loaded()
        if self._has_failed:
            launched()

    async def _bury(self) -> None:
        """Give back all that is left of a process that is over."""
        process, self._process = self._process, None
        if process is not None:
            await process.stop(0)
            process.close()

    def connect(self) -> socket.socket:
        """Return a connection for another process. Raises EngineDead."""
        if self._process is None or not self.alive:
            raise EngineDead("the engine is not running")
        try:
            return self._process.connect()
        except OSError as error:
            raise EngineDead(f"the engine takes no connections: {error.strerror}") from None

    def admit(self, end: socket.socket) -> None:
        """Give the engine a copy of a connection's end. Raises OSError if it has ended. For any thread."""
        if (process := self._process) is None:
            raise ConnectionRefusedError("the engine is not running")
        process.admit(end)

    async def shutdown(self, patience: float = SHUTDOWN_PATIENCE) -> None:
        """Ask the engine to end, then kill it. Open sequences and calls get EngineDead. Idempotent.

        patience: seconds that it may take to leave its step loop.
        """
        self._closed = True
        process, self._process = self._process, None
        # An engine that still loads its model hears nothing; one that is dead has nothing left to do.
        asked = self.alive and self.info is not None
        if asked:
            self._now().send(Shutdown())
        if self._connection is not None:
            self._connection.die(SHUTTING_DOWN)
        if process is not None:
            await process.stop(patience if asked else 0)
            process.close()
        self.leave()

    def kill(self) -> None:
        """Kill the engine, if one is there, and wait for nothing. For any thread."""
        if (process := self._process) is not None:
            process.kill()

    async def _cause_of_end(self) -> str:
        process = self._process
        if process is None:
            return SHUTTING_DOWN
        try:
            return (
                f"the engine process has ended with exit code {await asyncio.wait_for(process.wait(), EXIT_PATIENCE)}"
            )
        except TimeoutError:
            return await super()._cause_of_end()

    def _ended(self) -> None:
        self._over.set()
        super()._ended()

    def _is_out(self) -> bool:
        return super()._is_out() or (self._has_failed and self.info is None)

    def _look(self) -> None:
        super()._look()
        patience = self._patience and self._patience + LAST_CHANCE
        if self.alive and self._pulse.is_lost(patience, loading=self.info is None):
            self._now().die(f"the engine has given no sign of life for {self._pulse.silence:.0f} s")

    def _vitals(self) -> Vitals | None:
        return None if self._process is None else vitals_of(self._process.pid)
