"""The HTTP application, put together. Knows every part by its interface and nothing of processes or sockets."""

import time
from collections.abc import MutableSequence, Sequence
from functools import cache
from importlib.metadata import version
from types import ModuleType

from fastapi import FastAPI
from starlette.types import ASGIApp

from ..config import ServerConfig
from .admission import Admission
from .engine.interface import RemoteEngine
from .http.auth import BearerAuth
from .http.bodies import BodyLimit
from .http.clock import Timeouts
from .http.connection_counts import ConnectionCounts
from .http.connections import ConnectionLimits, OpenConnections
from .http.errors import install_error_handlers
from .http.memory import BodyMemory
from .http.server import raise_file_limit
from .metrics.requests import Metrics
from .processes.searches import PATH as SEARCHES
from .processes.searches import search_endpoint
from .routes import (
    adapter_files,
    adapters,
    evaluate,
    events,
    explain,
    generation,
    health,
    jobs,
    lifecycle,
    merges,
    metrics,
    models,
    rollback,
    routes,
    tokens,
    trainers,
    vllm_adapters,
)
from .routes.direct import DirectRoutes
from .routes.documentation import openapi
from .services import Adapters, OwnedAdapters, Services, base_id
from .shadows import Shadows
from .sources.finder import AdapterFinder

EVERYWHERE = (generation, models, tokens, health)
PRIMARY_ONLY = (
    events,  # before what takes any name
    *(adapters, lifecycle, rollback, adapter_files, merges, jobs, vllm_adapters, trainers, metrics),
    *(routes, explain, evaluate),
)
# Also beyond limits of connections.
ALWAYS = frozenset({b"/health", b"/health/", b"/health/live", b"/health/ready", b"/metrics"})


def create_app(services: Services) -> ASGIApp:
    """Return the application of the primary process, which has the adapters. services: what the routes share."""
    services.engine.add_stats_listener(services.metrics.observe_stats)
    framework = _framework(services, [*EVERYWHERE, *PRIMARY_ONLY])
    if services.finder is not None:
        framework.add_route(SEARCHES, search_endpoint(services.finder), methods=["POST"], include_in_schema=False)
    return _guarded(services, framework)


def create_worker_app(services: Services, forward: ASGIApp) -> ASGIApp:
    """Return the application of a process beside it. forward: answers all that is not of the model itself."""
    framework = _framework(services, EVERYWHERE, openapi_url=None)  # the primary process describes all routes
    framework.mount("/", forward)
    return _guarded(services, framework)


def make_services(
    engine: RemoteEngine,
    config: ServerConfig,
    opened: Adapters,
    counts: MutableSequence[int],
    number: int = 0,
    started: int | None = None,
) -> Services:
    """Make what the routes share.

    counts: sequences in flight by process, this one's at the place `number`. started: when the server was.
    """
    admission = Admission(config.engine.max_running + config.max_queue, counts, number)
    started = int(time.time()) if started is None else started
    shadows = Shadows(admission, config.engine.max_running)
    services = Services(config, engine, opened, admission, shadows, Metrics(), base_id(config), started)
    if config.adapter_sources and isinstance(opened, OwnedAdapters):
        owned = (opened.registry, opened.store, opened.library)
        services.finder = AdapterFinder(config.adapter_sources, services.sources, *owned, config.upload_limit)
    return services


def make_connections(services: Services, counts: ConnectionCounts | None = None) -> OpenConnections:
    """Make the connections within their limits. counts: open ones by process; None where there is no other."""
    config = services.config
    limits = ConnectionLimits(
        config.limit_header_bytes,
        raise_file_limit(config.limit_connections),
        config.limit_connections_per_address,
        Timeouts(config.timeout_headers, config.timeout_body, config.timeout_idle, config.timeout_write),
    )
    return OpenConnections(limits, counts, always=ALWAYS, count=services.metrics.count_refused)


def _guarded(services: Services, framework: ASGIApp) -> ASGIApp:
    """Wrap the framework, so that keys and sizes are looked at before a request goes its direct way, or the
    framework's.
    """
    config = services.config
    app: ASGIApp = DirectRoutes(framework, services=services, posts=generation.DIRECT)
    memory = BodyMemory(
        max(config.limit_body_memory // config.api_workers, config.body_limit),
        lambda: services.metrics.count_refused("body_memory"),
    )
    app = BodyLimit(app, limit=config.body_limit, upload_limit=config.upload_limit, memory=memory)
    return BearerAuth(app, keys=config.api_keys) if config.api_keys else app


def _framework(services: Services, routes: Sequence[ModuleType], openapi_url: str | None = "/openapi.json") -> FastAPI:
    app = FastAPI(
        title="peftserve",
        version=version("peftserve"),
        openapi_url=openapi_url,
        swagger_ui_oauth2_redirect_url=None,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    for module in routes:
        app.include_router(module.router)
    routers = [module.router for module in routes]
    described = cache(lambda: openapi(app, routers, keys=bool(services.config.api_keys)))
    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend a description
    return app
