"""The resources that the API processes of one server share, as the primary process opens them.

They are the port, the counts, the engine, and the private socket on which the primary answers its workers. A primary
without workers has no private socket.
"""

import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, MutableSequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ...config import ServerConfig
from ...wire.control import Begin
from ...wire.launch import encode_config
from ..engine.launched import LaunchedEngine
from ..http.connection_counts import ConnectionCounts
from ..http.server import BACKLOG, check_free, listen
from .forwarding import PRIMARY
from .link import WorkerLink
from .pool import WorkerPool
from .process import WorkerProcess
from .shared_counts import shared_counts, view, view_of_connections

LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes


@dataclass(frozen=True)
class ServerResources:
    """What the primary process serves with.

    workers: the other processes. listeners: the primary's sockets, the public one first. counts: sequences in flight by
    process. connections: open connections by process. started: when the server was, in seconds since 1970.
    """

    workers: WorkerPool
    listeners: list[socket.socket]
    counts: MutableSequence[int]
    connections: ConnectionCounts
    started: int


@contextmanager
def open_resources(config: ServerConfig, engine: LaunchedEngine) -> Iterator[ServerResources]:
    """Take the port and make what is shared. `workers.launch` starts the processes. Raises OSError."""
    several = config.api_workers > 1
    with ExitStack() as stack:
        if several:
            check_free(config.host, config.port)
        public = stack.enter_context(listen(config.host, config.port, shared=several))
        counts = stack.enter_context(shared_counts(config.api_workers))
        folder = stack.enter_context(_private_folder()) if several else Path()
        private = [stack.enter_context(listen_in(folder))] if several else []
        started = int(time.time())
        begin = Begin(
            number=0,
            config=encode_config(config),
            port=public.getsockname()[1],
            folder=str(folder),
            started=started,
        )
        starter = _Starter(engine, counts, begin)
        workers = WorkerPool(config.api_workers - 1, starter.start, starter.forget)
        yield ServerResources(workers, [public, *private], starter.counts, starter.connections, started)


class _Starter:
    """Starts workers, and resets their counts when they have ended. file: descriptor of the file of counts."""

    def __init__(self, engine: LaunchedEngine, file: int, begin: Begin) -> None:
        self.counts = view(file)
        self.connections = view_of_connections(file)
        self._engine = engine
        self._file = file
        self._begin = begin

    async def start(self, number: int) -> WorkerLink:
        """Start worker `number` with a connection to the engine. Raises EngineDead, OSError."""
        process = await WorkerProcess.start(self._engine.connect(), self._file)
        return await WorkerLink.begin(process, replace(self._begin, number=number))

    def forget(self, number: int) -> None:
        """Set the counts of a worker that has ended to 0: its sequences and connections have ended with it."""
        self.counts[number] = 0
        self.connections.forget(number)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Make a folder that only this user can enter, with a path short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="peftserve-"))
    if len(str(folder / PRIMARY)) > LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="peftserve-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen_in(folder: Path) -> socket.socket:
    """Return the primary's listening socket in the private folder. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / PRIMARY))
    listener.listen(BACKLOG)
    return listener
