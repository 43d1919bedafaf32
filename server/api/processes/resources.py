"""The resources that the API processes of one server share, as the primary process opens them.

They are the port, the counts, the engine, and the private socket on which the primary answers its workers. A primary
without workers has no private socket.
"""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from ...config import ServerConfig
from ...wire.control import Begin
from ...wire.launch import encode_config
from ..engine.interface import EngineDead
from ..engine.launched import LaunchedEngine
from ..http.connection_counts import ConnectionCounts
from ..http.server import BACKLOG, check_free, listen
from ..http.unix_sockets import listening_at
from ..tenancy.buckets import TokenBuckets
from ..tenancy.counts import TenantCounts
from .forwarding import PRIMARY
from .link import WorkerLink
from .pool import WorkerPool
from .private_folder import private_folder
from .process import WorkerProcess
from .shared_counts import shared_counts, view, view_of_buckets, view_of_connections, view_of_tenants


@dataclass(frozen=True)
class ServerResources:
    """What the primary process serves with.

    workers: the other processes. public: the socket for clients. private: that for workers, if there are any.
    counts: sequences in flight by process; tenants: by tenant. connections: open connections by process. buckets: of
    tokens. started: when the server was, in seconds since 1970. give_engine: gives all workers a connection to an
    engine that has just been started.
    """

    workers: WorkerPool
    public: socket.socket
    private: list[socket.socket]
    counts: MutableSequence[int]
    connections: ConnectionCounts
    tenants: TenantCounts
    buckets: TokenBuckets
    started: int
    give_engine: Callable[[], None]


@contextmanager
def open_resources(config: ServerConfig, engine: LaunchedEngine) -> Iterator[ServerResources]:
    """Take the port and make what is shared. `workers.launch` starts the processes. Raises OSError."""
    several = config.api_workers > 1
    with ExitStack() as stack:
        public = stack.enter_context(_listening(config))
        counts = stack.enter_context(shared_counts(config.api_workers))
        folder = stack.enter_context(private_folder()) if several else Path()
        private = [stack.enter_context(listen_in(folder))] if several else []
        started = int(time.time())
        begin = Begin(
            number=0,
            config=encode_config(config),
            port=0 if config.uds else public.getsockname()[1],
            folder=str(folder),
            started=started,
        )
        starter = _Starter(engine, counts, begin, public.fileno() if config.uds else None)
        workers = WorkerPool(config.api_workers - 1, starter.start, starter.forget)
        shared = (starter.counts, starter.connections, starter.tenants, view_of_buckets(counts))
        yield ServerResources(workers, public, private, *shared, started, starter.give_engine)


@contextmanager
def _listening(config: ServerConfig) -> Iterator[socket.socket]:
    """Listen where clients come. Raises OSError if another process does."""
    if config.uds is not None:
        with listening_at(config.uds) as listener:
            yield listener
        return
    several = config.api_workers > 1
    if several:
        check_free(config.host, config.port)
    with listen(config.host, config.port, shared=several) as listener:
        yield listener


class _Starter:
    """Starts workers, and resets their counts when they have ended.

    file: descriptor of the file of counts. listener: of a socket that all listen on; None where each opens its own.
    """

    def __init__(self, engine: LaunchedEngine, file: int, begin: Begin, listener: int | None) -> None:
        self.counts = view(file)
        self.connections = view_of_connections(file)
        self.tenants = view_of_tenants(file)
        self._engine = engine
        self._file = file
        self._begin = begin
        self._listener = listener
        self._processes: dict[int, WorkerProcess] = {}

    async def start(self, number: int) -> WorkerLink:
        """Start worker `number`, with a connection to the engine if one is there. Raises OSError."""
        process = self._processes[number] = await WorkerProcess.start(self._file, self._listener)
        self._give_engine(process)
        return await WorkerLink.begin(process, replace(self._begin, number=number))

    def give_engine(self) -> None:
        """Give each worker a connection to the engine, which has taken the place of another."""
        for process in self._processes.values():
            self._give_engine(process)

    def forget(self, number: int) -> None:
        """Set the counts of a worker that has ended to 0: its sequences and connections have ended with it."""
        del self._processes[number]
        self.counts[number] = 0
        self.connections.forget(number)
        self.tenants.forget(number)

    def _give_engine(self, process: WorkerProcess) -> None:
        with contextlib.suppress(EngineDead):  # the next one will be given
            process.give_engine(self._engine.connect())


def listen_in(folder: Path) -> socket.socket:
    """Return the primary's listening socket in the private folder. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / PRIMARY))
    listener.listen(BACKLOG)
    return listener
