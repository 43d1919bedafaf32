"""An API process beside the first, as a child: started with the sockets that it needs, ended at the latest with us.

Knows processes and descriptors; does not know what is said.
"""

import asyncio
import contextlib
import socket
import sys

WORKER_MODULE = "peftserve.server.api.secondary"


class WorkerProcess:
    """Started by `start`; `control` is our end of the connection to it, and when it closes the process ends."""

    def __init__(self, control: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.control = control
        self._process = process

    @classmethod
    async def start(cls, engine: socket.socket, counts: int) -> "WorkerProcess":
        """engine: a connection to the engine, which the process takes over. counts: descriptor of the shared counts.

        Raises OSError where the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), engine.fileno(), counts)
        with engine, theirs:
            try:
                # A session of its own: Ctrl-C on the terminal is for the first process, which drains all of them.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", WORKER_MODULE, *map(str, descriptors)),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=descriptors,
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(ours, process)

    async def stop(self, patience: float) -> None:
        """Waits for the process to end by itself for at most `patience` seconds, then ends it. Idempotent."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), patience)
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
