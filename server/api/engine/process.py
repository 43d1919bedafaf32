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
        """End the process as `end_process` does, and return its exit code."""
        return await end_process(self._process, patience)

    def close(self) -> None:
        """Releases the door and the life line; the process has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._door.close()


async def end_process(process: asyncio.subprocess.Process, patience: float) -> int:
    """Wait at most `patience` seconds for a child process to end by itself, then kill it.

    Returns its exit code; one that has ended already is fine.
    """
    with contextlib.suppress(TimeoutError):
        return await asyncio.wait_for(process.wait(), patience)
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    return await process.wait()
