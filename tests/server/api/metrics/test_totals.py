from prometheus_client import CollectorRegistry, Counter, Histogram

from peftserve.server.api.metrics.totals import samples_of, summed, with_samples


def _process(outcomes, latencies):
    registry = CollectorRegistry()
    requests = Counter("requests", "Requests", ["outcome"], registry=registry)
    seconds = Histogram("seconds", "Seconds", buckets=(1, 2), registry=registry)
    for outcome in outcomes:
        requests.labels(outcome).inc()
    for latency in latencies:
        seconds.observe(latency)
    return registry


def _values(families):
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_processes_add_up_to_what_one_would_have_counted():
    one = _process(["ok", "ok", "failed", "gone"], [0.5, 1.5, 5.0])
    parts = [_process(["ok"], [0.5]), _process(["ok", "failed"], [5.0]), _process(["gone"], [1.5])]
    first, *others = parts
    total = list(with_samples(first, [samples_of(other) for other in others]))
    assert [(family.name, family.type) for family in total] == [("requests", "counter"), ("seconds", "histogram")]
    got, wanted = _values(total), _values(one.collect())
    assert got.keys() == wanted.keys()
    times = {key for key in got if key[0].endswith("_created")}
    assert {key: got[key] for key in got.keys() - times} == {key: wanted[key] for key in got.keys() - times}
    earliest = min(value for (name, *_), value in _values(first.collect()).items() if name == "seconds_created")
    assert got["seconds_created",] == earliest


def test_nothing_adds_nothing():
    registry = _process(["ok"], [1.0])
    assert summed([{}, samples_of(registry), {}]) == samples_of(registry)
