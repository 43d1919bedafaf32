"""What the API processes of one server share: the port, their counts, the engine, and the first one's private socket.

This is the first one's side. Where it is the only one there is nothing to share, and nothing private.
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
    """listeners: of the first process, the public one before all others. counts: sequences in flight by process.

    connections: open ones, the same way. started: in seconds since 1970.
    """

    workers: WorkerPool
    listeners: list[socket.socket]
    counts: MutableSequence[int]
    connections: ConnectionCounts
    started: int


@contextmanager
def open_resources(config: ServerConfig, engine: LaunchedEngine) -> Iterator[ServerResources]:
    """The port is taken, and no process is started before `workers.launch`. Raises OSError."""
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
    """file: descriptor of that of the counts."""

    def __init__(self, engine: LaunchedEngine, file: int, begin: Begin) -> None:
        self.counts = view(file)
        self.connections = view_of_connections(file)
        self._engine = engine
        self._file = file
        self._begin = begin

    async def start(self, number: int) -> WorkerLink:
        """Raises EngineDead, OSError."""
        process = await WorkerProcess.start(self._engine.connect(), self._file)
        return await WorkerLink.begin(process, replace(self._begin, number=number))

    def forget(self, number: int) -> None:
        """What a process that has ended had in flight and open has ended with it."""
        self.counts[number] = 0
        self.connections.forget(number)


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A new folder that only this user can enter, with a path short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="peftserve-"))
    if len(str(folder / PRIMARY)) > LONGEST_SOCKET_PATH:
        folder.rmdir()
        folder = Path(tempfile.mkdtemp(prefix="peftserve-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def listen_in(folder: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / PRIMARY))
    listener.listen(BACKLOG)
    return listener
