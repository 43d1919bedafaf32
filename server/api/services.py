"""The services that the routes share, made once by `create_app` and found through the request's app."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

from fastapi import Depends, Request

from peftserve.adapters.events import EventLog
from peftserve.adapters.keeping import ALL, Keeping
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.names import VersionRef
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.resolved import Member, Resolved
from peftserve.adapters.router import Router
from peftserve.adapters.routing.policies import check_targets, targets_of
from peftserve.adapters.routing.query import Vector
from peftserve.adapters.routing.stored import FOLDER as ROUTES
from peftserve.adapters.routing.stored import RouteReader, RouteStore
from peftserve.adapters.store import AdapterStore

from ..config import ServerConfig
from ..wire.messages import AdapterLevel, EngineStats, ModelInfo
from .admission import Admission
from .engine.in_flight import InFlight
from .engine.interface import EngineDead, RemoteEngine
from .http.errors import unavailable
from .jobs.jobs import Jobs
from .lifecycle import Lifecycle, open_lifecycle
from .metrics.requests import Metrics
from .processes.pool import SharedLeases, WorkerPool
from .processes.searches import Finder
from .request_lease import RequestLease
from .shadows import Shadows
from .sources.fetchers import Sources
from .sources.place import SourceSettings
from .text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Adapters:
    """The adapters of one state folder, as every API process sees them. leases: of this process's requests."""

    registry: AdapterRegistry
    leases: Leases
    router: Router
    routes: RouteReader


@dataclass(frozen=True)
class OwnedAdapters(Adapters):
    """The adapters in the primary process, which alone changes the folder. workers: the other processes.

    jobs: what goes on in the background.
    """

    routes: RouteStore
    store: AdapterStore
    library: AdapterLibrary
    workers: WorkerPool
    jobs: Jobs
    life: Lifecycle

    async def requests_running(self) -> Counter[str]:
        """Return digest to requests that hold it, in all processes."""
        total = Counter(self.leases.counts())
        for stats in await self.workers.stats():
            total.update(stats.leases)
        return total


@dataclass
class Services:
    """All that the routes of one process share. started: Unix time of the server's start, in seconds."""

    config: ServerConfig
    engine: RemoteEngine
    adapters: Adapters
    admission: Admission
    shadows: Shadows
    metrics: Metrics
    base_id: str
    started: int
    finder: Finder | None = None  # set where the operator names places to look for adapters in
    preloaded: bool = True  # False until serve() has loaded the adapters of the command line
    examples: InFlight[Vector] = field(default_factory=InFlight, repr=False)  # of routes, that the base runs
    _tokenizer: Tokenizer | None = field(default=None, repr=False)  # set when the model's first use asks for it

    @property
    def owned(self) -> OwnedAdapters:
        """The adapters, for routes that only the primary process answers."""
        assert isinstance(self.adapters, OwnedAdapters)
        return self.adapters

    @cached_property
    def sources(self) -> Sources:
        """The places from which requests may have adapters fetched."""
        return Sources(source_settings(self.config))

    def model(self) -> ModelInfo:
        """Return the facts of the model. Raises EngineDead, ApiError 503 while the model loads."""
        if self.engine.info is None and self.engine.alive:
            raise unavailable("The model is being loaded; try again soon.", "loading")
        if self.engine.info is None or not self.engine.alive:
            raise EngineDead("the engine is not running")
        return self.engine.info

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, made at first use. Raises what `model` raises."""
        info = self.model()
        if self._tokenizer is None:
            self._tokenizer = Tokenizer(info)
        return self._tokenizer

    def drain(self) -> None:
        """Take no new requests from now on, and give up what no client waits for."""
        self.admission.drain()
        self.shadows.stop()

    async def load(self, ref: VersionRef) -> AdapterLevel:
        """Bring a version to the device ahead of use, and return where it is then: nothing can delete it meanwhile.

        To be awaited in the same turn of the event loop as the look-up of `ref`. Raises AdapterError, EngineDead.
        """
        held = Resolved((Member(ref, 1.0),), str(ref), ref.name)
        self.adapters.leases.acquire(held)
        try:
            return await self.engine.load_adapter(ref.digest)
        finally:
            self.adapters.leases.release(held)

    def hold(self, resolved: Resolved, sequences: int) -> RequestLease:
        """Reserve room for a request's sequences and its adapters, for as long as it runs. Raises ApiError 429 or 503.

        To be called in the same turn of the event loop as the look-up of `resolved`.
        """
        return RequestLease(self.admission, self.adapters.leases, self.metrics, resolved, sequences)


@asynccontextmanager
async def open_adapters(
    state_dir: Path, engine: RemoteEngine, base_id: str, workers: WorkerPool, keeping: Keeping = ALL
) -> AsyncIterator[OwnedAdapters]:
    """Open the adapters of a state folder, brought into order first, and close them at the end.

    keeping: for how long what is kept of them.
    Raises AdapterConflict if another server has it, StateUnusable, OSError.
    """
    with closing(AdapterStore(state_dir)) as store, open_registry(state_dir, store) as (registry, recovery):
        leases = Leases()
        routes = RouteStore(registry, base_id, targets_of, state_dir / ROUTES, check_targets)
        library = AdapterLibrary(
            store,
            registry,
            holders := SharedLeases(leases, workers),
            inspect=engine.inspect_adapter,
            release=engine.release_adapter,
            reserved=frozenset({base_id}),
            lost=recovery.lost,
            keeping=keeping,
        )
        routes.on_change = _teller(library.events)
        engine.add_stats_listener(lambda stats: _doubt(library, stats))
        jobs = Jobs()
        try:
            async with open_lifecycle(state_dir, engine, registry, library, holders) as life:
                router = Router(registry, base_id, routes, partial(_is_loaded, engine))
                yield OwnedAdapters(registry, leases, router, routes, store, library, workers, jobs, life)
        finally:
            await jobs.close()
            await library.close()


def _teller(events: EventLog) -> Callable[[str], None]:
    """Return what tells of a route's change, from any thread."""
    loop = asyncio.get_running_loop()

    def tell(name: str) -> None:
        loop.call_soon_threadsafe(events.tell, "route.changed", None, name)

    return tell


def _doubt(library: AdapterLibrary, stats: EngineStats) -> None:
    for digest in stats.damaged_adapters:
        library.recheck(digest)


def _is_loaded(engine: RemoteEngine, digest: str) -> bool:
    return digest in engine.stats.device_adapters or digest in engine.stats.host_adapters


@contextmanager
def open_replica(state_dir: Path, engine: RemoteEngine, base_id: str) -> Iterator[Adapters]:
    """Open the adapters in a process beside the primary one; it sees each change as soon as that one has made it."""
    with closing(AdapterRegistry(state_dir / REGISTRY)) as registry:
        routes = RouteReader(registry)
        yield Adapters(registry, Leases(), Router(registry, base_id, routes, partial(_is_loaded, engine)), routes)


def source_settings(config: ServerConfig) -> SourceSettings:
    """Return what requests may name as sources."""
    return SourceSettings(
        config.allow_adapter_sources,
        config.allow_adapter_paths,
        config.allow_source_hosts,
        config.allow_private_sources,
        config.hub_token_file,
        config.timeout_source,
    )


def base_id(config: ServerConfig) -> str:
    """Return the base's name to clients: the operator's, else the model folder's or the hub's."""
    if config.served_model_name is not None:
        return config.served_model_name
    model = Path(config.engine.model)
    return model.resolve().name if model.is_dir() else config.engine.model


async def get_services(request: Request) -> Services:
    """Return the services of the request's app. Async, as the framework would run it on a thread otherwise."""
    services: Services = request.app.state.services
    return services


ServicesOf = Annotated[Services, Depends(get_services)]
