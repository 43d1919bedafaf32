"""A counter and a histogram without locks, for what happens at every token.

prometheus-client's own take a lock and search their buckets one by one. These are for one event loop, which both counts
and is scraped; a scrape shows what it would show of the library's.
"""

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ..private.prometheus_private import bound_label


class LockFreeCounter(Collector):
    """A counter without labels."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self._name, self._text = name, text
        self._total = 0
        self._created = time.time()
        registry.register(self)

    def inc(self, number: int) -> None:
        """Add `number` to the total."""
        self._total += number

    def collect(self) -> Iterable[Metric]:
        metric = Metric(self._name, self._text, "counter")
        metric.add_sample(f"{self._name}_total", {}, float(self._total))
        metric.add_sample(f"{self._name}_created", {}, self._created)
        return [metric]


class LockFreeHistogram(Collector):
    """A histogram without labels. buckets: upper bounds, ascending; one without a bound is added."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry, buckets: Sequence[float]) -> None:
        self._name, self._text = name, text
        self._bounds = [*buckets, math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0
        self._created = time.time()
        registry.register(self)

    def observe(self, value: float) -> None:
        """Count a value in its bucket, and add it to the sum."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        metric, below = Metric(self._name, self._text, "histogram"), 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            below += count
            metric.add_sample(f"{self._name}_bucket", {"le": bound_label(bound)}, float(below))
        metric.add_sample(f"{self._name}_count", {}, float(below))
        metric.add_sample(f"{self._name}_sum", {}, self._sum)
        metric.add_sample(f"{self._name}_created", {}, self._created)
        return [metric]
