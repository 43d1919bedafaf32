"""What the routes work with, made once by `create_app` and found through the request's app."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.router import Resolved, Router
from peftserve.adapters.store import AdapterStore

from ..config import ServerConfig
from ..wire.messages import ModelInfo
from .admission import Admission
from .engine import Engine, EngineDead
from .errors import unavailable
from .metrics import Metrics
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class Adapters:
    """The adapters of one state folder."""

    store: AdapterStore
    registry: AdapterRegistry
    leases: Leases
    library: AdapterLibrary
    router: Router


@dataclass
class Services:
    config: ServerConfig
    engine: Engine
    adapters: Adapters
    admission: Admission
    metrics: Metrics
    base_id: str
    started: int = field(default_factory=lambda: int(time.time()))
    preloaded: bool = True  # False until serve() has loaded the adapters of the command line
    _tokenizer: Tokenizer | None = field(default=None, repr=False)  # set when the model's first use asks for it

    @property
    def ready(self) -> bool:
        return self.engine.alive and self.engine.info is not None and self.preloaded and not self.admission.draining

    def model(self) -> ModelInfo:
        """Raises EngineDead, ApiError 503 while the model loads."""
        if self.engine.info is None and self.engine.alive:
            raise unavailable("The model is being loaded; try again soon.", "loading")
        if self.engine.info is None or not self.engine.alive:
            raise EngineDead("the engine is not running")
        return self.engine.info

    def tokenizer(self) -> Tokenizer:
        """Raises what `model` raises."""
        info = self.model()
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(info)
        return self._tokenizer

    @contextmanager
    def hold(self, resolved: Resolved, sequences: int) -> Iterator[None]:
        """Room for a request's sequences and its adapters, for as long as it runs. Raises ApiError 429 or 503.

        To be entered in the same turn of the event loop as the look-up of `resolved`.
        """
        with self.admission.enter(sequences), self.metrics.request(resolved):
            self.adapters.leases.acquire(resolved)
            try:
                yield
            finally:
                self.adapters.leases.release(resolved)


@asynccontextmanager
async def open_adapters(state_dir: Path, engine: Engine, base_id: str) -> AsyncIterator[Adapters]:
    """The adapters of a state folder, closed again at the end. Raises AdapterConflict if another server has it."""
    with closing(AdapterStore(state_dir)) as store, closing(AdapterRegistry(state_dir / "registry.sqlite")) as registry:
        leases = Leases()
        library = AdapterLibrary(
            store,
            registry,
            leases,
            inspect=engine.inspect_adapter,
            release=engine.release_adapter,
            reserved=frozenset({base_id}),
        )
        try:
            yield Adapters(store, registry, leases, library, Router(registry, base_id))
        finally:
            await library.close()


def base_id(config: ServerConfig) -> str:
    """The base's name to clients: the operator's, else the model folder's or the hub's."""
    if config.served_model_name is not None:
        return config.served_model_name
    model = Path(config.engine.model)
    return model.resolve().name if model.is_dir() else config.engine.model


async def get_services(request: Request) -> Services:
    """Async although it waits for nothing: the framework would run it on a thread."""
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(get_services)]
