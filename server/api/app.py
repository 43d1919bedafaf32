"""The HTTP application, put together. Knows every part by its interface and nothing of processes or sockets."""

import time
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import ModuleType

from fastapi import FastAPI
from starlette.types import ASGIApp

from ..config import ServerConfig
from .admission import Admission
from .edges import at_the_edge, between_processes, refusals
from .engine.interface import RemoteEngine
from .http.auth import BearerAuth
from .http.bodies import BodyLimit
from .http.clock import Timeouts
from .http.connection_counts import ConnectionCounts
from .http.connections import ConnectionLimits, OpenConnections
from .http.errors import install_error_handlers
from .http.memory import BodyMemory
from .http.root_path import WithRootPath
from .http.server import raise_file_limit
from .messages_api.dialect import MessagesDialect
from .metrics.requests import Metrics
from .opened import Adapters, OwnedAdapters
from .processes.searches import PATH as SEARCHES
from .processes.searches import search_endpoint
from .routes import (
    adapter_files,
    adapters,
    embeddings,
    evaluate,
    events,
    explain,
    generation,
    health,
    jobs,
    lifecycle,
    merges,
    messages,
    metrics,
    model_deletion,
    models,
    page,
    probes,
    responses,
    rollback,
    routes,
    server,
    tokens,
    trainers,
    versions,
    vllm_adapters,
)
from .routes.direct import DirectRoutes
from .routes.documentation import openapi
from .services import Services, base_id, keyring_of, quota_of
from .shadows import Shadows
from .sources.finder import AdapterFinder
from .tenancy.buckets import TokenBuckets
from .tenancy.counts import TenantCounts
from .tenancy.keyring import Keyring
from .watching.audit import AuditLog, passing_on
from .watching.watchers import open_watchers

EVERYWHERE = (generation, embeddings, responses, messages, models, tokens, health, probes, server)
PRIMARY_ONLY = (
    events,  # before what takes any name
    *(adapters, model_deletion, lifecycle, rollback, versions, adapter_files, merges, jobs, vllm_adapters, trainers),
    metrics,
    *(routes, explain, evaluate),
)
# Also beyond limits of connections.
ALWAYS = frozenset({b"/health", b"/health/", b"/health/live", b"/health/ready", b"/ping", b"/load", b"/metrics"})


@dataclass(frozen=True)
class PrimaryApps:
    """The application of the primary process, which has the adapters, twice.

    public: for the port. private: the same for the socket on which workers pass requests on.
    """

    public: ASGIApp
    private: ASGIApp


def create_app(services: Services) -> ASGIApp:
    """Return the application of a server that is one process. services: what the routes share."""
    return create_primary_apps(services).public


def create_primary_apps(services: Services) -> PrimaryApps:
    """Return the applications of the primary process. services: what the routes share."""
    services.engine.add_stats_listener(services.metrics.observe_stats)
    framework = _framework(services, [*_everywhere(services), *PRIMARY_ONLY])
    if services.finder is not None:
        framework.add_route(SEARCHES, search_endpoint(services.finder), methods=["POST"], include_in_schema=False)
    prefix = services.config.root_path
    app = _guarded(services, WithRootPath(framework, prefix) if prefix else framework)
    return PrimaryApps(at_the_edge(services.config, services.watchers, app), between_processes(services.watchers, app))


def create_worker_app(services: Services, forward: ASGIApp) -> ASGIApp:
    """Return the application of a process beside it. forward: answers all that is not of the model itself."""
    framework = _framework(
        services, _everywhere(services), openapi_url=None
    )  # the primary process describes all routes
    framework.mount("/", passing_on(forward))
    return at_the_edge(services.config, services.watchers, _guarded(services, framework))


def make_services(
    engine: RemoteEngine,
    config: ServerConfig,
    opened: Adapters,
    counts: MutableSequence[int],
    number: int = 0,
    started: int | None = None,
    tenants: TenantCounts | None = None,
    buckets: TokenBuckets | None = None,
) -> Services:
    """Make what the routes share.

    counts: sequences in flight by process, this one's at the place `number`. started: when the server was.
    tenants: sequences in flight by tenant. buckets: of tokens. None for those of one process.
    Raises MissingPackage, KeyFileError, OSError.
    """
    admission = Admission(config.engine.max_running + config.max_queue, counts, number, tenants)
    started = int(time.time()) if started is None else started
    shadows = Shadows(admission, config.engine.max_running)
    services = Services(
        config, engine, opened, admission, shadows, Metrics(), base_id(config), started, keyring_of(config)
    )
    services.buckets = buckets or services.buckets
    services.watchers = open_watchers(config.access_log, config.otlp_endpoint, version("peftserve"), number)
    if config.audit_log is not None:
        audit = services.watchers.audit = AuditLog(config.audit_log)
        if isinstance(opened, OwnedAdapters):
            opened.library.events.add_listener(audit.observe)
            services.keys.on_change = audit.keys_changed
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
    prefix = config.root_path.encode("ascii")
    always = ALWAYS | {prefix + path for path in ALWAYS}
    count, refused = services.metrics.count_refused, refusals(config, services.watchers)
    return OpenConnections(limits, counts, always=always, count=count, refused=refused)


def _everywhere(services: Services) -> Sequence[ModuleType]:
    """Return the routes that every process answers."""
    return [*EVERYWHERE, page] if services.config.ui else EVERYWHERE


def _guarded(services: Services, framework: ASGIApp) -> ASGIApp:
    """Wrap the framework, so that keys and sizes are looked at before a request goes its direct way, or the
    framework's.
    """
    config = services.config
    posts = {**generation.DIRECT, **embeddings.DIRECT, **responses.DIRECT, **messages.DIRECT}
    app: ASGIApp = DirectRoutes(framework, services=services, posts=posts)
    memory = BodyMemory(
        max(config.limit_body_memory // config.api_workers, config.body_limit),
        lambda: services.metrics.count_refused("body_memory"),
    )
    app = BodyLimit(app, limit=config.body_limit, upload_limit=config.upload_limit, memory=memory)
    return MessagesDialect(BearerAuth(app, services.keys, quota_of(config), Keyring(config.metrics_keys)))


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
    install_error_handlers(app, [route for module in routes for route in module.router.routes])
    for module in routes:
        app.include_router(module.router)
    routers = [module.router for module in routes]
    described = cache(lambda: openapi(app, routers, keys=not services.keys.is_open))
    app.openapi = described  # type: ignore[method-assign]  # FastAPI's own way to extend a description
    return app
