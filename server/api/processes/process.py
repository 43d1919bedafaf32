"""A worker as a child process: started with the sockets that it needs, ended at the latest with the primary.

Knows processes and descriptors; does not know the messages.
"""

import asyncio
import socket
import sys

from ..engine.process import end_process

WORKER_MODULE = "peftserve.server.api.worker"


class WorkerProcess:
    """A running worker. Made by `start`. control: our end of the connection to it; when it closes, the process ends."""

    def __init__(self, control: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.control = control
        self._process = process

    @classmethod
    async def start(cls, engine: socket.socket, counts: int) -> "WorkerProcess":
        """Start a worker. engine: a connection to the engine, which the process takes over.

        counts: descriptor of the shared counts. Raises OSError if the process cannot be started.
        """
        ours, theirs = socket.socketpair()
        descriptors = (theirs.fileno(), engine.fileno(), counts)
        with engine, theirs:
            try:
                # A session of its own: Ctrl-C on the terminal is for the primary process, which drains all of them.
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
        """Wait at most `patience` seconds for the process to end by itself, then kill it."""
        await end_process(self._process, patience)
