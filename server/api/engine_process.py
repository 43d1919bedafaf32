"""The engine as a child process: its socket, its standard input as the life line, its end noticed at once.

Knows processes and folders; does not know what the messages mean.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..config import EngineConfig
from ..wire.launch import engine_command, engine_environment
from ..wire.transport import ApiSocket

CommandMaker = Callable[[str, EngineConfig], list[str]]

SOCKET_NAME = "engine"
LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes


class EngineProcess:
    """Started by `start`; `socket` talks to it; `wait` returns its exit code."""

    def __init__(self, folder: Path, socket: ApiSocket, process: asyncio.subprocess.Process) -> None:
        self.socket = socket
        self._folder = folder
        self._process = process

    @classmethod
    async def start(cls, config: EngineConfig, make_command: CommandMaker = engine_command) -> "EngineProcess":
        """Raises OSError where the process cannot be started."""
        folder = _private_folder()
        address = f"ipc://{folder / SOCKET_NAME}"
        socket = ApiSocket(address)
        try:
            # A session of its own: Ctrl-C on the terminal is for the API, which drains before it stops the engine.
            process = await asyncio.create_subprocess_exec(
                *make_command(address, config),
                stdin=asyncio.subprocess.PIPE,
                env=engine_environment(),
                start_new_session=True,
            )
        except BaseException:
            socket.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(folder, socket, process)

    def forget_folder(self) -> None:
        """Removes the socket's path once both ends are connected: nobody else can connect, a kill leaves nothing."""
        shutil.rmtree(self._folder, ignore_errors=True)

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
        """Releases the socket, the life line and the folder; the process has ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self.socket.close()
        self.forget_folder()


def _private_folder() -> Path:
    """A new folder that only this user can enter, with a path short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="peftserve-"))
    if len(str(folder / SOCKET_NAME)) <= LONGEST_SOCKET_PATH:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="peftserve-", dir="/tmp"))
