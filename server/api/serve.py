"""The primary process: it brings up the engine, the adapters, HTTP and the workers, and ends them in order.

The port answers at once: alive, not ready, until the model and the command line's adapters are loaded. On SIGTERM or
SIGINT the server is not ready any more, what runs may finish within the grace time, and the rest is ended; a second
signal ends all at once.
"""

import asyncio
import logging
import socket
from dataclasses import replace
from pathlib import Path

import uvloop

from peftserve.adapters.base_binding import BaseIdentity, bind
from peftserve.adapters.errors import AdapterConflict, AdapterError, NameTaken

from ..config import ServerConfig
from ..logs import set_up_logging
from ..wire.launch import engine_command
from ..wire.messages import ModelInfo
from .app import create_primary_apps, make_connections, make_services
from .edges import tls_context
from .ending import Ending, heed_signals
from .engine.interface import EngineDead
from .engine.launched import LaunchedEngine
from .engine.process import CommandMaker
from .http.server import HttpServer
from .http.threads import entered
from .lifecycle import keeping_of
from .opened import open_adapters
from .processes.resources import ServerResources, open_resources
from .services import Services, base_id
from .sources.watcher import FolderWatcher
from .tenancy.key_file import KeyFileError
from .watching.traces import MissingPackage

logger = logging.getLogger(__name__)

FAILED = 1
PATIENCE_SHARE, MOST_PATIENCE = 0.4, 5.0  # of the time that is left, and seconds, for one part of the end
ENGINE_LOST = 4  # the engine has ended or hangs, and is not to be started again


class EngineLost(Exception):
    """The engine has ended or hangs, and whoever runs the server wants to start it again with the server."""


_Servers = list[tuple[HttpServer, socket.socket]]  # each with what it listens on


def run(config: ServerConfig, make_command: CommandMaker = engine_command) -> int:
    """Serve until a signal comes. Returns the process's exit status.

    make_command: says what the engine's process is.
    """
    set_up_logging(config.log_level)
    try:
        return uvloop.run(serve(config, make_command))
    except EngineLost as error:
        logger.error("The server ends: %s", error)
        return ENGINE_LOST
    except AdapterError as error:
        logger.error("Cannot start: %s", " ".join(error.message.split()))
    except (EngineDead, KeyFileError, MissingPackage, OSError) as error:
        logger.error("Cannot start: %s", " ".join(str(error).split()))
    return FAILED


async def serve(config: ServerConfig, make_command: CommandMaker = engine_command) -> int:
    """Serve until a signal comes.

    Raises EngineDead, AdapterError, MissingPackage or OSError if the start fails, EngineLost.
    """
    engine = LaunchedEngine(
        replace(config.engine, store=config.engine.store or config.state_dir / "adapters"),
        make_command,
        patience=config.engine_timeout,
    )
    ending = heed_signals(config.grace_period, engine.kill)
    with open_resources(config, engine) as resources:
        async with open_adapters(
            config.state_dir,
            engine,
            base_id(config),
            resources.workers,
            keeping_of(config),
            config.other_model_names,
        ) as adapters:
            services = make_services(
                engine,
                config,
                adapters,
                resources.counts,
                started=resources.started,
                tenants=resources.tenants,
                buckets=resources.buckets,
            )
            services.preloaded = False
            servers = _make_servers(services, resources)
            with services.keys.watching():
                try:
                    await engine.launch()
                    resources.workers.launch()
                    await _serve_until(ending, servers, resources, services, engine)
                finally:
                    if services.finder is not None:
                        await services.finder.close()
                    await engine.shutdown()
                    await services.watchers.close()
    return 0


def _make_servers(services: Services, resources: ServerResources) -> _Servers:
    """Make what answers clients, and what answers the workers. Raises OSError for files of TLS that do not do."""
    apps = create_primary_apps(services)
    connections = make_connections(services, resources.connections)
    servers = [(HttpServer(apps.public, connections, tls=tls_context(services.config)), resources.public)]
    return [*servers, *((HttpServer(apps.private, private=True), listener) for listener in resources.private)]


async def _serve_until(
    ending: Ending, servers: _Servers, resources: ServerResources, services: Services, engine: LaunchedEngine
) -> None:
    serving = [asyncio.create_task(server.serve([listener]), name="http") for server, listener in servers]
    start = asyncio.create_task(_start(services, engine, resources), name="start")
    asked = asyncio.create_task(ending.first.wait(), name="signal")
    keeping = asyncio.create_task(_keep(engine, resources, services.config.engine_restart), name="engine")
    ends = {*serving, asked, keeping}
    try:
        await asyncio.wait({*ends, start}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            _raise(start, ending, FAILED)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done() and not asked.done():
            _raise(keeping, ending, ENGINE_LOST)
        await _drain(services, ending)
    finally:
        for task in (start, asked, keeping):
            task.cancel()
        await asyncio.gather(start, asked, keeping, return_exceptions=True)
        # Ends what is still running with an error, and then the connections.
        patience = _patience(ending)
        await asyncio.gather(resources.workers.stop(patience), engine.shutdown(patience))
        patience = _patience(ending)
        await asyncio.gather(*(s.close(task, patience) for (s, _), task in zip(servers, serving, strict=True)))


def _raise(task: "asyncio.Task[None]", ending: Ending, status: int) -> None:
    """Raise what a task that is done has raised, if anything, which ends the process with this status."""
    if task.exception() is not None:
        ending.fail(status)
    task.result()


def _patience(ending: Ending) -> float:
    """Return the seconds that a part of the end may take."""
    return min(MOST_PATIENCE, ending.left * PATIENCE_SHARE)


async def _keep(engine: LaunchedEngine, resources: ServerResources, restart: bool) -> None:
    """Have an engine run for as long as the server does. Raises EngineLost where it is not to be started again."""
    await engine.has_model()
    if restart:
        await engine.keep(resources.give_engine)
    raise EngineLost(await engine.over())


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
    logger.info("Serving %s on %s", services.base_id, _address(services.config, resources))
    if watcher is not None:
        await watcher.run()


def _address(config: ServerConfig, resources: ServerResources) -> str:
    """Return where the server is, as people give it to their programs."""
    if config.uds is not None:
        return f"the Unix socket {config.uds}"
    host, port = resources.public.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if config.ssl_certfile else 'http'}://{shown}:{port}"


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
    async with entered(services.owned.store.stage, services.config.upload_limit) as staged:
        try:
            await asyncio.to_thread(staged.copy_folder, folder)
            record = await services.owned.library.add(staged, name, only_if_new=True)
        except NameTaken:
            logger.warning("Adapter %s from %s is left out: a tenant has the name", name, folder)
            return
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


async def _drain(services: Services, ending: Ending) -> None:
    """Take no new requests, and wait for those that run, and for uploads: as long as the grace time allows, or to the
    second signal.
    """
    services.owned.life.events.close()
    services.drain()
    logger.info("Shutting down; %d sequences are running", services.admission.in_flight_everywhere)
    waiting = [
        asyncio.create_task(_all_idle(services)),
        asyncio.create_task(_hurried(ending)),
    ]
    await asyncio.wait(waiting, timeout=ending.for_requests, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _all_idle(services: Services) -> None:
    await asyncio.gather(services.admission.idle(), services.uploads.idle(), services.owned.workers.drain())


async def _hurried(ending: Ending) -> None:
    await ending.second.wait()
