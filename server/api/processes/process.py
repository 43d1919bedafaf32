"""A worker as a child process: started with the sockets that it needs, ended at the latest with the primary.

Knows processes and descriptors; does not know the messages.
"""

import asyncio
import contextlib
import socket
import sys

from ...wire.engine_socket import KNOCK
from ..engine.process import end_process

WORKER_MODULE = "peftserve.server.api.worker"


class WorkerProcess:
    """A running worker. Made by `start`. control: our end of the connection to it; when it closes, the process ends."""

    def __init__(self, control: socket.socket, door: socket.socket, process: asyncio.subprocess.Process) -> None:
        self.control = control
        self._door = door
        self._process = process

    @classmethod
    async def start(cls, counts: int, listener: int | None = None) -> "WorkerProcess":
        """Start a worker, which takes connections to engines through a door as an engine takes its own.

        counts: descriptor of the shared counts. listener: of the socket to listen on; None for one of its own.
        Raises OSError if the process cannot be started.
        """
        (ours, theirs), (door, their_door) = socket.socketpair(), socket.socketpair()
        descriptors = (theirs.fileno(), their_door.fileno(), counts, *([] if listener is None else [listener]))
        with theirs, their_door:
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
                door.close()
                raise
        return cls(ours, door, process)

    def give_engine(self, connection: socket.socket) -> None:
        """Pass a connection to the engine on, in place of the one before; to a worker that has ended, nothing."""
        with connection, contextlib.suppress(OSError):
            socket.send_fds(self._door, [KNOCK], [connection.fileno()])

    async def stop(self, patience: float) -> None:
        """Wait at most `patience` seconds for the process to end by itself, then kill it."""
        await end_process(self._process, patience)
        self._door.close()
