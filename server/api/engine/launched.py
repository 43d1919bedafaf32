"""The client of an engine that this process launches with its configuration and ends with the server."""

import asyncio
import socket

from ...config import EngineConfig
from ...wire.launch import engine_command
from ...wire.messages import ModelInfo, Shutdown
from .client import SHUTTING_DOWN, EngineClient
from .interface import EngineDead
from .process import CommandMaker, EngineProcess

SHUTDOWN_PATIENCE = 10.0  # seconds that an engine may take to leave its step loop
EXIT_PATIENCE = 1.0  # seconds from the end of its connection to that of the process


class LaunchedEngine(EngineClient):
    """The client of the primary process, which owns the engine's process. Call `start` first."""

    def __init__(self, config: EngineConfig, make_command: CommandMaker = engine_command) -> None:
        super().__init__()
        self._config = config
        self._make_command = make_command
        self._process: EngineProcess | None = None  # set by launch()

    async def launch(self) -> None:
        """Start the process without waiting for its model. Raises OSError."""
        self._process = await EngineProcess.start(self._config, self._make_command)
        await self.attach(self._process.connect())

    async def start(self) -> ModelInfo:
        """Start the process, unless `launch` has, and wait for its model. Raises EngineDead, OSError."""
        if self._process is None and self._dead is None:
            await self.launch()
        return await self.loaded()

    def connect(self) -> socket.socket:
        """Return a connection for another process. Raises EngineDead."""
        if self._process is None or not self.alive:
            raise EngineDead("the engine is not running")
        try:
            return self._process.connect()
        except OSError as error:
            raise EngineDead(f"the engine takes no connections: {error.strerror}") from None

    async def shutdown(self) -> None:
        """Ask the engine to end, then kill it. Open sequences and calls get EngineDead. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        # An engine that still loads its model hears nothing; one that is dead has nothing left to do.
        asked = self._dead is None and self.info is not None
        if asked:
            self._send(Shutdown())
        self._die(SHUTTING_DOWN)
        await process.stop(SHUTDOWN_PATIENCE if asked else 0)
        self.leave()
        process.close()

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
