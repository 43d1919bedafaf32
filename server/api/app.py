"""The HTTP application, put together. Knows every part by its interface and nothing of processes or sockets."""

from importlib.metadata import version

from fastapi import FastAPI

from ..config import ServerConfig
from . import adapters, chat, completions, health, models, tokens, vllm_adapters
from .admission import Admission
from .auth import BearerAuth
from .body import BodyLimit
from .direct import DirectRoutes
from .engine import Engine
from .engine_metrics import EngineCollector
from .errors import install_error_handlers
from .metrics import Metrics
from .services import Adapters, Services, base_id

ROUTES = (completions, chat, models, adapters, vllm_adapters, tokens, health)
DIRECT = {
    "/v1/completions": completions.create_completion,
    "/v1/chat/completions": chat.create_chat_completion,
}


def create_app(engine: Engine, config: ServerConfig, opened: Adapters) -> FastAPI:
    """opened: what `open_adapters` gave for the same engine. The app's `state.services` is what the routes share."""
    services = _services(engine, config, opened)
    app = FastAPI(
        title="peftserve",
        version=version("peftserve"),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    install_error_handlers(app)
    app.add_middleware(DirectRoutes, services=services, posts=DIRECT)
    app.add_middleware(BodyLimit, limit=config.body_limit, upload_limit=config.upload_limit)
    app.add_middleware(BearerAuth, keys=config.api_keys)
    for routes in ROUTES:
        app.include_router(routes.router)
    return app


def _services(engine: Engine, config: ServerConfig, opened: Adapters) -> Services:
    name = base_id(config)
    metrics = Metrics()
    metrics.registry.register(EngineCollector(engine, metrics, name))
    engine.add_stats_listener(metrics.observe_stats)
    admission = Admission(config.engine.max_running + config.max_queue)
    return Services(config, engine, opened, admission, metrics, name)
