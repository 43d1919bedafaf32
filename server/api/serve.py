"""The primary process: it brings up the engine, the adapters, HTTP and the workers, and ends them in order.

The port answers at once: alive, not ready, until the model and the command line's adapters are loaded. On SIGTERM or
SIGINT the server is not ready any more, what runs may finish within the grace time, and the rest is ended; a second
signal ends the grace time.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import uvloop

from peftserve.adapters.base_binding import BaseIdentity, bind
from peftserve.adapters.errors import AdapterConflict, AdapterError

from ..config import ServerConfig
from ..logs import set_up_logging
from ..wire.messages import ModelInfo
from .app import create_app, make_connections, make_services
from .engine.interface import EngineDead
from .engine.launched import LaunchedEngine
from .http.server import CLOSING_SECONDS, HttpServer
from .lifecycle import keeping_of
from .processes.resources import ServerResources, open_resources
from .services import Services, base_id, open_adapters
from .sources.watcher import FolderWatcher

logger = logging.getLogger(__name__)

FAILED = 1


def run(config: ServerConfig) -> int:
    """Serve until a signal comes. Returns the process's exit status."""
    set_up_logging(config.log_level)
    try:
        return uvloop.run(serve(config))
    except AdapterError as error:
        logger.error("Cannot start: %s", error.message)
    except (EngineDead, OSError) as error:
        logger.error("Cannot start: %s", error)
    return FAILED


async def serve(config: ServerConfig) -> int:
    """Serve until a signal comes. Raises EngineDead, AdapterError or OSError if the start fails."""
    engine = LaunchedEngine(replace(config.engine, store=config.engine.store or config.state_dir / "adapters"))
    with open_resources(config, engine) as resources:
        async with open_adapters(
            config.state_dir, engine, base_id(config), resources.workers, keeping_of(config)
        ) as adapters:
            services = make_services(engine, config, adapters, resources.counts, started=resources.started)
            services.preloaded = False
            server = HttpServer(create_app(services), make_connections(services, resources.connections))
            with _signals() as stopping:
                try:
                    await engine.launch()
                    resources.workers.launch()
                    await _serve_until(stopping, server, resources, services, engine)
                finally:
                    if services.finder is not None:
                        await services.finder.close()
                    await engine.shutdown()
    return 0


async def _serve_until(
    stopping: "_Signals", server: HttpServer, resources: ServerResources, services: Services, engine: LaunchedEngine
) -> None:
    http = asyncio.create_task(server.serve(resources.listeners), name="http")
    start = asyncio.create_task(_start(services, engine, resources), name="start")
    asked = asyncio.create_task(stopping.first.wait(), name="signal")
    try:
        await asyncio.wait({http, start, asked}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            start.result()
            await asyncio.wait({http, asked}, return_when=asyncio.FIRST_COMPLETED)
        await _drain(services, stopping)
    finally:
        for task in (start, asked):
            task.cancel()
        await asyncio.gather(start, asked, return_exceptions=True)
        # Ends what is still running with an error, and then the connections.
        await asyncio.gather(resources.workers.stop(CLOSING_SECONDS + 1), engine.shutdown())
        await server.close(http)


async def _start(services: Services, engine: LaunchedEngine, resources: ServerResources) -> None:
    """Bring the server to readiness, and then watch the adapters' folder. Raises EngineDead, AdapterError, OSError."""
    await asyncio.to_thread(_bind, services, await engine.start())
    await asyncio.to_thread(services.tokenizer)
    for name, folder in services.config.preload:
        await _preload(services, name, folder)
    watcher = _watcher(services)
    if watcher is not None:
        await watcher.start()
    for name, file in services.config.preload_routes:  # whose targets may be of the watched folder
        await asyncio.to_thread(_preload_route, services, name, file)
    await resources.workers.serve()
    services.preloaded = True
    host, port = resources.listeners[0].getsockname()[:2]
    logger.info("Serving %s on http://%s:%d", services.base_id, f"[{host}]" if ":" in host else host, port)
    if watcher is not None:
        await watcher.run()


def _watcher(services: Services) -> FolderWatcher | None:
    owned, config = services.owned, services.config
    if config.adapter_dir is None:
        return None
    return FolderWatcher(config.adapter_dir, owned.registry, owned.store, owned.library, config.upload_limit)


def _bind(services: Services, info: ModelInfo) -> None:
    """Bind the state folder to the base, or check that it is the one. Raises StateUnusable, OSError."""
    bind(
        services.config.state_dir,
        BaseIdentity(services.base_id, info.fingerprint),
        in_use=services.adapters.registry.count() > 0,
        allow_other=services.config.allow_other_base,
    )


async def _preload(services: Services, name: str, folder: Path) -> None:
    staged = await asyncio.to_thread(services.owned.store.stage, services.config.upload_limit)
    with staged:
        try:
            await asyncio.to_thread(staged.copy_folder, folder)
            record = await services.owned.library.add(staged, name, only_if_new=True)
        except AdapterError as error:
            raise type(error)(f"adapter {name!r} from {str(folder)!r}: {error.message}", param=error.param) from None
    logger.info("Adapter %s: %s, rank %d", record.ref, record.facts.method, record.facts.rank)


def _preload_route(services: Services, name: str, file: Path) -> None:
    """Put a route, unless there is one of this name: what has been changed over HTTP stays. So does an adapter.

    Raises AdapterError, OSError.
    """
    if services.owned.routes.find(name) is not None:
        return
    try:
        route, _ = services.owned.routes.put(name, file.read_bytes())
    except AdapterConflict as error:
        logger.warning("Route %s from %s is left out: %s", name, file, error.message)
    except AdapterError as error:
        raise type(error)(f"route {name!r} from {str(file)!r}: {error.message}", param=error.param) from None
    else:
        logger.info("Route %s@%d", name, route.version)


async def _drain(services: Services, stopping: "_Signals") -> None:
    """Take no new requests, and wait for those that run: to the end of the grace time or the second signal."""
    services.owned.life.events.close()
    services.drain()
    logger.info("Shutting down; %d sequences are running", services.admission.in_flight_everywhere)
    waiting = [
        asyncio.create_task(_all_idle(services)),
        asyncio.create_task(_hurried(stopping)),
    ]
    await asyncio.wait(waiting, timeout=services.config.grace_period, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _all_idle(services: Services) -> None:
    await asyncio.gather(services.admission.idle(), services.owned.workers.drain())


async def _hurried(stopping: "_Signals") -> None:
    await stopping.second.wait()


class _Signals:
    """The signals so far. first: set when the server is asked to stop. second: set when it is to stop at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def count(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def _signals() -> Iterator[_Signals]:
    loop, signals = asyncio.get_running_loop(), _Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.count)
    try:
        yield signals
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
