"""The HTTP application, put together. Knows every part by its interface and nothing of processes or sockets."""

import time
from collections.abc import MutableSequence, Sequence
from importlib.metadata import version
from types import ModuleType

from fastapi import FastAPI
from starlette.types import ASGIApp

from ..config import ServerConfig
from . import adapters, chat, completions, health, models, scrape, tokens, vllm_adapters
from .admission import Admission
from .auth import BearerAuth
from .body import BodyLimit
from .direct import DirectRoutes
from .engine import Engine
from .errors import install_error_handlers
from .metrics import Metrics
from .services import Adapters, Services, base_id

EVERYWHERE = (completions, chat, models, tokens, health)
FIRST_ONLY = (adapters, vllm_adapters, scrape)
DIRECT = {
    "/v1/completions": completions.create_completion,
    "/v1/chat/completions": chat.create_chat_completion,
}


def create_app(services: Services) -> ASGIApp:
    """Of the process that has the adapters. services: what the routes share."""
    services.engine.add_stats_listener(services.metrics.observe_stats)
    return _guarded(services, _framework(services, [*EVERYWHERE, *FIRST_ONLY]))


def create_worker_app(services: Services, forward: ASGIApp) -> ASGIApp:
    """Of another process. forward: answers all that is not of the model itself."""
    framework = _framework(services, EVERYWHERE, openapi_url=None)
    framework.mount("/", forward)
    return _guarded(services, framework)


def make_services(
    engine: Engine,
    config: ServerConfig,
    opened: Adapters,
    counts: MutableSequence[int],
    number: int = 0,
    started: int | None = None,
) -> Services:
    """counts: sequences in flight by process, this one's at the place `number`. started: when the server was."""
    admission = Admission(config.engine.max_running + config.max_queue, counts, number)
    started = int(time.time()) if started is None else started
    return Services(config, engine, opened, admission, Metrics(), base_id(config), started)


def _guarded(services: Services, framework: ASGIApp) -> ASGIApp:
    """Keys and sizes are looked at before the request goes its direct way, or the framework's."""
    config = services.config
    app: ASGIApp = DirectRoutes(framework, services=services, posts=DIRECT)
    app = BodyLimit(app, limit=config.body_limit, upload_limit=config.upload_limit)
    return BearerAuth(app, keys=config.api_keys) if config.api_keys else app


def _framework(services: Services, routes: Sequence[ModuleType], openapi_url: str | None = "/openapi.json") -> FastAPI:
    app = FastAPI(
        title="peftserve",
        version=version("peftserve"),
        openapi_url=openapi_url,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    for module in routes:
        app.include_router(module.router)
    return app
