"""The engine as a child process: how it is started, connected to and ended.

The engine takes new connections through one socket, the door, and ends when its standard input closes, so that it never
outlives its parent. Knows processes and sockets; does not know what the messages mean.
"""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable

from ...config import EngineConfig
from ...wire.engine_socket import KNOCK
from ...wire.launch import engine_command, engine_environment

CommandMaker = Callable[[int, EngineConfig], list[str]]


class EngineProcess:
    """A running engine process. Made by `start`."""

    def __init__(self, door: socket.socket, process: asyncio.subprocess.Process) -> None:
        self._door = door
        self._process = process

    @classmethod
    async def start(cls, config: EngineConfig, make_command: CommandMaker = engine_command) -> "EngineProcess":
        """Start the process, without waiting for its model. Raises OSError if it cannot be started."""
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

    @property
    def pid(self) -> int:
        return self._process.pid

    def connect(self) -> socket.socket:
        """Return a new connection, which the engine accepts between steps. Raises OSError if the engine has ended."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.admit(theirs)
            except OSError:
                ours.close()
                raise
        return ours

    def admit(self, end: socket.socket) -> None:
        """Give the engine a copy of a connection's end. Raises OSError if the engine has ended. For any thread."""
        socket.send_fds(self._door, [KNOCK], [end.fileno()])

    async def wait(self) -> int:
        """Wait for the process to end, and return its exit code."""
        return await self._process.wait()

    async def stop(self, patience: float) -> int:
        """End the process as `end_process` does, and return its exit code."""
        return await end_process(self._process, patience)

    def kill(self) -> None:
        """Kill the process and what it has started."""
        kill_group(self._process.pid)

    def close(self) -> None:
        """Close the door and the standard input of a process that has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._door.close()


async def end_process(process: asyncio.subprocess.Process, patience: float) -> int:
    """Wait at most `patience` seconds for a child process to end by itself, then kill it and what it has started.

    The process has a session of its own. Returns its exit code; one that has ended already is fine.
    """
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), patience)
    kill_group(process.pid)
    return await process.wait()


def kill_group(leader: int) -> None:
    """Kill a process that leads a session, and what it has left there, such as compilers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
