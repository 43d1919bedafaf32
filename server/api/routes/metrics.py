"""GET /metrics: what all API processes have counted, and the engine's state. Open to everyone, without a key."""

from collections.abc import Iterable, Sequence

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ..metrics.engine_state import EngineCollector
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
    everything = _Everything(services, samples, names.union(services.metrics.names_in_use()))
    return Response(generate_latest(everything), media_type=CONTENT_TYPE_LATEST)


class _Everything(Collector):
    """All metrics of the server, for one scrape.

    samples: what other processes have counted. names: of adapters in use, in all processes.
    """

    def __init__(self, services: Services, samples: Sequence[Samples], names: set[tuple[str, str]]) -> None:
        self._services = services
        self._samples = samples
        self._names = names

    def collect(self) -> Iterable[Metric]:
        yield from with_samples(self._services.metrics.registry, self._samples)
        yield from EngineCollector(self._services.engine, self._services.base_id, self._names).collect()
