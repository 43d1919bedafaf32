"""A worker: an API process that answers requests to the model itself, and forwards all others to the primary process.

    python -m peftserve.server.api.worker CONTROL DOOR COUNTS [LISTENER]

takes descriptors: the connection to the primary, the door through which that passes connections to engines, the file of
shared counts, and the socket to listen on unless it opens one of its own on the port. A worker reads the registry that
the primary writes. It ends when it is told to, or when the primary ends.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from ..config import ServerConfig
from ..logs import set_up_logging
from ..wire.control import AwaitIdle, Begin, Call, Done, Drain, GiveStats, Order, Serve, Stop, WorkerStats
from ..wire.engine_socket import MOST_AT_ONCE
from ..wire.launch import decode_config
from ..wire.transport import Channel
from .app import create_worker_app, make_connections, make_services
from .edges import tls_context
from .engine.client import EngineClient
from .http.server import HttpServer, listen
from .metrics.totals import samples_of
from .opened import open_replica
from .processes.forwarding import Forwarder
from .processes.searches import RemoteFinder
from .processes.shared_counts import view, view_of_buckets, view_of_connections, view_of_tenants
from .services import Services, base_id

logger = logging.getLogger(__name__)


class ApiWorker:
    """The worker of this process.

    door: brings connections to engines. counts: descriptor of the file of counts. listener: of the socket, if it is
    shared.
    """

    def __init__(self, door: socket.socket, counts: int, listener: int | None = None) -> None:
        self._door = door
        self._counts = counts
        self._listener = listener
        self._engine = EngineClient()
        self._channel: Channel[Done, Order] = Channel(msgspec.msgpack.Decoder(Order), self._obey, self._orphaned)
        self._begin: asyncio.Future[Begin] = asyncio.get_running_loop().create_future()
        self._services: asyncio.Future[Services] = asyncio.get_running_loop().create_future()
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._config: ServerConfig | None = None  # set by run()
        self._server: HttpServer | None = None  # set by run()
        self._http: asyncio.Task[None] | None = None  # set by _serve()

    async def run(self, control: socket.socket) -> None:
        """Follow the primary's orders on the connection `control` until `Stop`. Raises what keeps this from serving."""
        await self._channel.open(control)
        begin = await self._begin
        config = self._config = decode_config(begin.config, ServerConfig)
        set_up_logging(config.log_level)
        self._door.setblocking(False)
        asyncio.get_running_loop().add_reader(self._door.fileno(), self._welcome)
        forwarder = Forwarder(Path(begin.folder))
        with open_replica(config.state_dir, self._engine, base_id(config), config.other_model_names) as adapters:
            counts = view(self._counts)
            shares = (view_of_tenants(self._counts, begin.number), view_of_buckets(self._counts))
            services = make_services(self._engine, config, adapters, counts, begin.number, begin.started, *shares)
            services.preloaded = False
            services.finder = RemoteFinder(Path(begin.folder)) if config.adapter_sources else None
            connections = make_connections(services, view_of_connections(self._counts, begin.number))
            self._server = HttpServer(create_worker_app(services, forwarder), connections, tls=tls_context(config))
            self._services.set_result(services)
            try:
                with services.keys.watching():
                    await self._stopped
            finally:
                self._engine.leave()
                if self._http is not None:
                    await self._server.close(self._http)
                await forwarder.close()
                if services.finder is not None:
                    await services.finder.close()
                await services.watchers.close()
                self._channel.close()

    def _welcome(self) -> None:
        """Take the newest connection to an engine from the door, in place of the one before."""
        with contextlib.suppress(BlockingIOError):
            knock, descriptors, _, _ = socket.recv_fds(self._door, MOST_AT_ONCE, MOST_AT_ONCE)
            if not knock:  # the primary has gone, of which the other connection tells
                asyncio.get_running_loop().remove_reader(self._door.fileno())
            connections = [socket.socket(fileno=descriptor) for descriptor in descriptors]
            for connection in connections[:-1]:
                connection.close()
            if connections:
                self._keep(self._engine.attach(connections[-1]))

    def _obey(self, order: Order) -> None:
        match order:
            case Begin():
                self._begin.set_result(order)
            case Stop():
                self._stop(None)
            case _:
                self._keep(self._answer(order))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, call: Call) -> None:
        services = await self._services
        try:
            stats = await self._do(services, call)
        except Exception as error:
            self._stop(error)
        else:
            self._channel.send(Done(call.call_id, stats))

    async def _do(self, services: Services, call: Call) -> WorkerStats | None:
        match call:
            case Serve():
                await self._serve(services)
            case AwaitIdle(digest=digest):
                await services.adapters.leases.idle(digest)
            case Drain():
                services.drain()
                await services.admission.idle()
            case GiveStats():
                return WorkerStats(
                    services.adapters.leases.counts(),
                    services.metrics.names_in_use(),
                    samples_of(services.metrics.registry),
                )
        return None

    async def _serve(self, services: Services) -> None:
        """Wait for a model, and return when this process listens. Raises EngineDead, OSError."""
        assert self._server is not None
        await self._engine.has_model()
        await asyncio.to_thread(services.tokenizer)
        services.preloaded = True
        self._http = asyncio.create_task(self._server.serve([self._listening(services.config)]), name="http")
        while not self._server.started:
            await asyncio.sleep(0.01)

    def _listening(self, config: ServerConfig) -> socket.socket:
        if self._listener is not None:
            return socket.socket(fileno=self._listener)
        return listen(config.host, self._begin.result().port, shared=True)

    def _stop(self, error: Exception | None) -> None:
        if self._stopped.done():
            return
        if error is None:
            self._stopped.set_result(None)
        else:
            self._stopped.set_exception(error)

    def _orphaned(self, fault: msgspec.MsgspecError | None) -> None:
        """End this process, as the primary has ended without `Stop`, and remove the private folder that it left."""
        if self._stopped.done():
            return
        if self._begin.done():
            shutil.rmtree(self._begin.result().folder, ignore_errors=True)
        os._exit(1)


async def _run(control: int, door: int, counts: int, listener: int | None = None) -> None:
    await ApiWorker(socket.socket(fileno=door), counts, listener).run(socket.socket(fileno=control))


def main(arguments: Sequence[str]) -> int:
    """Run the worker. Returns the exit status: 0 after `Stop`, 1 if it cannot serve.

    If the primary dies, the process exits with 1 at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # both are for the primary, which drains all
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        uvloop.run(_run(*map(int, arguments)))
    except Exception:
        logger.exception("An API process has failed")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
