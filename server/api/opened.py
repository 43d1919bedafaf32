"""The adapters of a state folder as a process opens them, and as one who asks sees and changes them."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from peftserve.adapters.events import EventLog
from peftserve.adapters.keeping import ALL, Keeping
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.ownership import Actor
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME as REGISTRY
from peftserve.adapters.registry_reader import RegistryReader
from peftserve.adapters.router import Router
from peftserve.adapters.routing.policies import check_targets, targets_of
from peftserve.adapters.routing.stored import FOLDER as ROUTES
from peftserve.adapters.routing.stored import RouteReader, RouteStore
from peftserve.adapters.seen import SharedConnection
from peftserve.adapters.store import AdapterStore

from ..wire.messages import EngineStats
from .engine.interface import RemoteEngine
from .jobs.jobs import Jobs
from .lifecycle import Lifecycle, open_lifecycle
from .processes.pool import SharedLeases, WorkerPool


@dataclass(frozen=True)
class Adapters:
    """The adapters of one state folder, as every API process sees them.

    leases: of this process's requests. shared: the connection of those who do not see all.
    """

    registry: RegistryReader
    leases: Leases
    router: Router
    routes: RouteReader
    shared: SharedConnection

    def seen_by(self, actor: Actor) -> "Adapters":
        """Return the adapters as one who asks sees them. Raises StateUnusable."""
        registry = self.shared.registry(self.registry, actor)
        routes = RouteReader(registry)
        return replace(self, registry=registry, router=self.router.seen_by(registry, routes), routes=routes)


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

    def seen_by(self, actor: Actor) -> "OwnedAdapters":
        """Return the adapters as one who asks sees and changes them. Raises StateUnusable."""
        registry = self.shared.registry(self.registry, actor)
        routes = self.routes.acting_for(actor, registry)
        return replace(
            self,
            registry=registry,
            router=self.router.seen_by(registry, routes),
            routes=routes,
            library=self.library.acting_for(actor),
            jobs=self.jobs.acting_for(actor),
            life=self.life.seen_by(actor),
        )

    async def requests_running(self) -> Counter[str]:
        """Return digest to requests that hold it, in all processes."""
        total = Counter(self.leases.counts())
        for stats in await self.workers.stats():
            total.update(stats.leases)
        return total


@asynccontextmanager
async def open_adapters(
    state_dir: Path,
    engine: RemoteEngine,
    base_id: str,
    workers: WorkerPool,
    keeping: Keeping = ALL,
    also: Collection[str] = (),
) -> AsyncIterator[OwnedAdapters]:
    """Open the adapters of a state folder, brought into order first, and close them at the end.

    keeping: for how long what is kept of them. also: further names of the base.
    Raises AdapterConflict if another server has it, StateUnusable, OSError.
    """
    with (
        closing(AdapterStore(state_dir)) as store,
        open_registry(state_dir, store) as (registry, recovery),
        closing(SharedConnection(state_dir / REGISTRY)) as shared,
    ):
        leases = Leases()
        routes = RouteStore(registry, {base_id, *also}, targets_of, state_dir / ROUTES, check_targets)
        library = AdapterLibrary(
            store,
            registry,
            holders := SharedLeases(leases, workers),
            inspect=engine.inspect_adapter,
            release=engine.release_adapter,
            reserved=frozenset({base_id, *also}),
            lost=recovery.lost,
            keeping=keeping,
        )
        routes.on_change = _teller(library.events)
        engine.add_stats_listener(lambda stats: _doubt(library, stats))
        jobs = Jobs()
        try:
            async with open_lifecycle(state_dir, engine, registry, library, holders) as life:
                router = Router(registry, base_id, routes, partial(_is_loaded, engine), also)
                yield OwnedAdapters(registry, leases, router, routes, shared, store, library, workers, jobs, life)
        finally:
            await jobs.close()
            await library.close()


def _teller(events: EventLog) -> Callable[[str, str], None]:
    """Return what tells of a route's change, from any thread."""
    loop = asyncio.get_running_loop()

    def tell(name: str, owner: str) -> None:
        loop.call_soon_threadsafe(events.tell, "route.changed", None, name, owner)

    return tell


def _doubt(library: AdapterLibrary, stats: EngineStats) -> None:
    for digest in stats.damaged_adapters:
        library.recheck(digest)


def _is_loaded(engine: RemoteEngine, digest: str) -> bool:
    return digest in engine.stats.device_adapters or digest in engine.stats.host_adapters


@contextmanager
def open_replica(state_dir: Path, engine: RemoteEngine, base_id: str, also: Collection[str] = ()) -> Iterator[Adapters]:
    """Open the adapters in a process beside the primary one; it sees each change as soon as that one has made it."""
    path = state_dir / REGISTRY
    with closing(AdapterRegistry(path)) as registry, closing(SharedConnection(path)) as shared:
        routes = RouteReader(registry)
        router = Router(registry, base_id, routes, partial(_is_loaded, engine), also)
        yield Adapters(registry, Leases(), router, routes, shared)
