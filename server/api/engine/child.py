"""The engine as a child process: the door to it, its standard input as the life line, its end.

Knows processes and sockets; does not know what the messages mean.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable

from ...config import EngineConfig
from ...wire.engine_socket import KNOCK
from ...wire.launch import engine_command, engine_environment

CommandMaker = Callable[[int, EngineConfig], list[str]]


class EngineProcess:
    """Started by `start`; `connect` makes connections to it; `wait` returns its exit code."""

    def __init__(self, door: socket.socket, process: asyncio.subprocess.Process) -> None:
        self._door = door
        self._process = process

    @classmethod
    async def start(cls, config: EngineConfig, make_command: CommandMaker = engine_command) -> "EngineProcess":
        """Raises OSError where the process cannot be started."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                # A session of its own: Ctrl-C on the terminal is for the API, which drains before it stops the engine.
                process = await asyncio.create_subprocess_exec(
                    *make_command(theirs.fileno(), config),
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(theirs.fileno(),),
                    env=engine_environment(),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(ours, process)

    def connect(self) -> socket.socket:
        """A new connection, which the engine takes when it comes to it. Raises OSError where the engine has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._door, [KNOCK], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self, patience: float) -> int:
        """Waits for the process to end by itself for at most `patience` seconds, then ends it. Idempotent."""
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(self._process.wait(), patience)
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await self._process.wait()

    def close(self) -> None:
        """Releases the door and the life line; the process has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._door.close()
