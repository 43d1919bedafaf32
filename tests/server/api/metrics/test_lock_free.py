"""A scrape is the library's own, but for the time of creation."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from peftserve.server.api.metrics.lock_free import LockFreeCounter, LockFreeHistogram

BUCKETS = (0.002, 0.5, 1.0, 2.5)


def _scrape(registry):
    lines = generate_latest(registry).decode().splitlines()
    return [line.split()[0] if "_created" in line and not line.startswith("#") else line for line in lines]


@pytest.mark.parametrize("values", [[], [0.0, 0.002, 0.3, 0.5, 0.50001, 2.5, 2.6, 1e9]])
def test_a_histogram_is_the_librarys(values):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    histograms = (
        LockFreeHistogram("a_seconds", "Text", ours, BUCKETS),
        Histogram("a_seconds", "Text", buckets=BUCKETS, registry=theirs),
    )
    for value in values:
        for histogram in histograms:
            histogram.observe(value)
    assert _scrape(ours) == _scrape(theirs)


def test_a_counter_is_the_librarys():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    for counter in (LockFreeCounter("tokens", "Text", ours), Counter("tokens", "Text", registry=theirs)):
        counter.inc(3)
        counter.inc(4)
    assert _scrape(ours) == _scrape(theirs)
