"""GET /metrics: what all API processes have counted, and the engine's state. Open to everyone, without a key."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from peftserve.adapters.registry_reader import RegistryReader

from ..metrics.engine_state import EngineCollector, Loaded, loaded_names
from ..metrics.totals import Samples, with_samples
from ..services import Services, ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Operations"])


@router.get("/metrics")
@Operation("Scrape the metrics", "# HELP peftserve_requests_running Sequences in the engine's steps.\n")
async def metrics(services: ServicesOf) -> Response:
    """Return what all API processes have counted, and the engine's state, in Prometheus' text format."""
    workers = services.owned.workers
    stats = await workers.stats()
    samples = [*(one.samples for one in stats), workers.past]
    names = {pair for one in stats for pair in one.names}
    names_of = partial(_newest_names, services.adapters.registry)
    # On a thread: it reads the registry some hundred times.
    loaded = await asyncio.to_thread(loaded_names, services.engine.stats, names_of)
    everything = _Everything(services, samples, names.union(services.metrics.names_in_use()), loaded)
    return Response(generate_latest(everything), media_type=CONTENT_TYPE_LATEST)


class _Everything(Collector):
    """All metrics of the server, for one scrape.

    samples: what other processes have counted. names: of adapters in use, in all processes. loaded: those in memory.
    """

    def __init__(
        self, services: Services, samples: Sequence[Samples], names: set[tuple[str, str]], loaded: Loaded
    ) -> None:
        self._services = services
        self._samples = samples
        self._names = names
        self._loaded = loaded

    def collect(self) -> Iterable[Metric]:
        yield from with_samples(self._services.metrics.registry, self._samples)
        services = self._services
        yield from EngineCollector(services.engine, services.base_id, self._names, self._loaded).collect()


def _newest_names(registry: RegistryReader, digest: str) -> Iterable[str]:
    """Yield the names whose newest version has this digest: what a client gets that asks for the name alone."""
    for name in registry.names_of(digest):
        newest = registry.find(name)
        if newest is not None and newest.digest == digest:
            yield name
