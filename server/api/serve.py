"""The server's life: engine, adapters and HTTP brought up together, and down in order.

The port answers at once: alive, not ready, until the model and the command line's adapters are loaded. On SIGTERM or
SIGINT the server is not ready any more, what runs may finish within the grace time, and the rest is ended; a second
signal ends the grace time.
"""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import uvicorn
import uvloop
from fastapi import FastAPI

from peftserve.adapters.errors import AdapterError

from ..config import ServerConfig
from .app import create_app
from .engine import EngineDead
from .joined_writes import JoinedHttpProtocol
from .own_engine import OwnEngine
from .services import Services, base_id, open_adapters

logger = logging.getLogger(__name__)

FAILED = 1
KEEP_ALIVE_SECONDS = 75  # longer than load balancers keep an idle connection, so that they close it and not we
CLOSING_SECONDS = 5  # for answers on their way out after the engine has stopped


def run(config: ServerConfig) -> int:
    """Serve until a signal comes. Returns the process's exit status."""
    _set_up_logging(config.log_level)
    try:
        return uvloop.run(serve(config))
    except AdapterError as error:
        logger.error("Cannot start: %s", error.message)
    except (EngineDead, OSError) as error:
        logger.error("Cannot start: %s", error)
    return FAILED


async def serve(config: ServerConfig) -> int:
    """Raises EngineDead, AdapterError or OSError where the start fails."""
    engine = OwnEngine(replace(config.engine, store=config.engine.store or config.state_dir / "adapters"))
    with _listen(config.host, config.port) as listener:
        async with open_adapters(config.state_dir, engine, base_id(config)) as adapters:
            app = create_app(engine, config, adapters)
            services: Services = app.state.services
            services.preloaded = False
            server = _Server(_uvicorn_config(app))
            with _signals() as stopping:
                try:
                    await engine.launch()
                    await _serve_until(stopping, server, listener, services, engine)
                finally:
                    await engine.shutdown()
    return 0


async def _serve_until(
    stopping: "_Signals", server: "_Server", listener: socket.socket, services: Services, engine: OwnEngine
) -> None:
    http = asyncio.create_task(server.serve([listener]), name="http")
    start = asyncio.create_task(_start(services, engine, listener), name="start")
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
        await _close(server, http, engine)


async def _start(services: Services, engine: OwnEngine, listener: socket.socket) -> None:
    """Bring the server to readiness. Raises EngineDead, AdapterError."""
    for ref in await asyncio.to_thread(services.adapters.library.recover):
        logger.error("Adapter %s has lost its files; requests for it will fail. Upload it again or remove it.", ref)
    await engine.start()
    await asyncio.to_thread(services.tokenizer)
    for name, folder in services.config.preload:
        await _preload(services, name, folder)
    services.preloaded = True
    host, port = listener.getsockname()[:2]
    logger.info("Serving %s on http://%s:%d", services.base_id, f"[{host}]" if ":" in host else host, port)


async def _preload(services: Services, name: str, folder: Path) -> None:
    staged = await asyncio.to_thread(services.adapters.store.stage, services.config.upload_limit)
    with staged:
        try:
            await asyncio.to_thread(staged.copy_folder, folder)
            record = await services.adapters.library.add(staged, name, only_if_new=True)
        except AdapterError as error:
            raise type(error)(f"adapter {name!r} from {str(folder)!r}: {error.message}", param=error.param) from None
    logger.info("Adapter %s: %s, rank %d", record.ref, record.facts.method, record.facts.rank)


async def _drain(services: Services, stopping: "_Signals") -> None:
    services.admission.drain()
    logger.info("Shutting down; %d sequences are running", services.admission.in_flight)
    idle = asyncio.create_task(services.admission.idle())
    hurry = asyncio.create_task(stopping.second.wait())
    await asyncio.wait({idle, hurry}, timeout=services.config.grace_seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in (idle, hurry):
        task.cancel()


async def _close(server: "_Server", http: "asyncio.Task[None]", engine: OwnEngine) -> None:
    """Ends what is still running with an error, and then the connections."""
    await engine.shutdown()
    server.should_exit = True
    await asyncio.wait({http}, timeout=CLOSING_SECONDS)
    server.force_exit = True
    await http


def _uvicorn_config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=JoinedHttpProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )


class _Server(uvicorn.Server):
    """Leaves signals to us: uvicorn's own way out closes the port before the grace time."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Signals:
    """first: the server is asked to stop. second: at once."""

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


def _listen(host: str, port: int) -> socket.socket:
    """Bound now, so that a port in use is said before a model is loaded. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _set_up_logging(level: str) -> None:
    logging.basicConfig(level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
