"""GET /metrics: what all API processes have counted, and the engine's state. Open to everyone, without a key."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from peftserve.adapters.registry_reader import RegistryReader

from ..http.accepted import qualities
from ..metrics.engine_state import EngineCollector, Loaded, loaded_names
from ..metrics.requests import MIXTURE, OTHER
from ..metrics.seen import seen
from ..metrics.totals import Samples, with_samples
from ..services import Services, ServicesOf
from ..tenancy.tenant import ANYONE
from .documentation import Operation

router = APIRouter(tags=["Operations"])

OPENMETRICS = "application/openmetrics-text"


@router.get("/metrics")
@Operation("Scrape the metrics", "# HELP peftserve_requests_running Sequences in the engine's steps.\n")
async def metrics(request: Request, asking: ServicesOf) -> Response:
    """Return what all API processes have counted, and the engine's state.

    In Prometheus' text format, or in OpenMetrics' where `Accept` asks for it.
    """
    services: Services = request.app.state.services  # whoever asks: all of it is counted
    workers = services.owned.workers
    stats = await workers.stats()
    samples = [*(one.samples for one in stats), workers.past]
    names = {pair for one in stats for pair in one.names}
    names_of = partial(_newest_names, services.adapters.registry)
    # On a thread: it reads the registry some hundred times.
    loaded = await asyncio.to_thread(loaded_names, services.engine.stats, names_of)
    everything: Collector = _Everything(services, samples, names.union(services.metrics.names_in_use()), loaded)
    if asking.tenant is not ANYONE and not asking.actor.sees_all:
        everything = await asyncio.to_thread(_Seen, everything, asking)
    text, media_type = _written(everything, wants_openmetrics(request.headers.getlist("accept")))
    return Response(text, headers={"Content-Type": media_type, "Vary": "Accept"})


def wants_openmetrics(accept: Iterable[str]) -> bool:
    """Return whether an `Accept` asks for OpenMetrics by name, and for nothing else rather."""
    found = qualities(accept)
    return found.get(OPENMETRICS, 0.0) > 0 and found[OPENMETRICS] >= found.get("text/plain", 0.0)


def _written(everything: Collector, as_openmetrics: bool) -> tuple[bytes, str]:
    """Return the metrics and their media type."""
    if as_openmetrics:
        # By its default the library writes names with colons, which are legal, as other names.
        text: bytes = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            everything, escaping=openmetrics.ALLOWUTF8
        )
        return text, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(everything), CONTENT_TYPE_LATEST


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


class _Seen(Collector):
    """The metrics that a tenant sees, of all that there are."""

    def __init__(self, everything: Collector, services: Services) -> None:
        self._families = list(seen(everything.collect(), partial(_is_seen, services)))

    def collect(self) -> Iterable[Metric]:
        yield from self._families


def _is_seen(services: Services, label: str, value: str) -> bool:
    """Return whether a label's value is there for who asks. Names of no adapter or route are everybody's."""
    if label == "tenant":
        return value == services.tenant.shown
    return value in ("", OTHER, MIXTURE) or services.adapters.router.is_known(value)


def _newest_names(registry: RegistryReader, digest: str) -> Iterable[str]:
    """Yield the names whose newest version has this digest: what a client gets that asks for the name alone."""
    for name in registry.names_of(digest):
        newest = registry.find(name)
        if newest is not None and newest.digest == digest:
            yield name
