"""Every request ends once, and queues are as long as queueing theory has them."""

from math import inf
from random import Random

import numpy as np
import pytest

from benchmarks.scale.costs import Costs, measured
from benchmarks.scale.fleet import Fleet, run
from benchmarks.scale.policies import POLICIES
from benchmarks.scale.replica import Shape
from benchmarks.scale.workload import TRACES, Trace, Traffic

FREE_LOADS = {"host": 0.0, "disk": 0.0, "afar": 0.0}
ROOM = {"device": inf, "host": inf, "disk": inf}


@pytest.mark.parametrize("kind", TRACES)
@pytest.mark.parametrize("name", POLICIES)
def test_every_request_ends_once(name: str, kind: str) -> None:
    traffic = Traffic(requests=1500, adapters=300, rate=60.0, skew=0.8)
    small = Shape(device=1.5e9, slots=6, host=4e9, disk=1e10, running=8)  # so that all of its limits are met
    fleet = Fleet(6, small, measured(), Random(0))
    policy, given = POLICIES[name](), []

    def noted(fleet: Fleet, request: object) -> int:
        given.append(policy(fleet, request))  # type: ignore[arg-type]
        return given[-1]

    requests = run(fleet, TRACES[kind](traffic), noted)
    assert len(given) == len(requests) == traffic.requests
    assert all(one.arrival < one.first <= one.end < inf for one in requests)
    assert fleet.sequences == [0] * 6
    assert fleet.total == 0
    for replica in fleet.replicas:
        replica.check_integrity()
        assert sum(replica.loaded.values()) > 0
    fetched = sum(one.size for one in requests if one.origin is not None)
    assert sum(sum(replica.loaded.values()) for replica in fleet.replicas) <= fetched


def test_a_request_alone_takes_its_prompt_its_load_and_its_steps() -> None:
    costs = measured()
    trace = Trace(np.array([1.0]), np.array([0]), np.array([1000.0]), np.array([11.0]), np.array([16]))
    [one] = run(Fleet(1, Shape(), costs, Random(0)), trace, lambda fleet, request: 0)
    assert one.origin == "afar"
    assert one.first == pytest.approx(1 + costs.byte["afar"] * one.size + 1000 * costs.token)
    assert one.end == pytest.approx(one.first + 10 * costs.step(1, 16))


def _mean_time(service: str, share: float, *, sharing: bool, requests: int = 60_000) -> float:
    """Return the mean time in a queue whose mean service is a second, as theory has it, at this share of its capacity.

    A request of one token to prefill costs nothing; a step is a hundredth of a second, in which all take part or one.
    """
    draw = np.random.default_rng(5)
    steps = draw.exponential(100.0, requests) if service == "exponential" else np.full(requests, 100.0)
    arrival = np.cumsum(draw.exponential(1 / share, requests))
    nothing = np.zeros(requests)
    trace = Trace(arrival, nothing.astype(np.int64), nothing, steps + 1, np.array([16]))
    costs = Costs(lambda sequences, ranks: 0.01 * sequences, 0.0, FREE_LOADS)  # type: ignore[arg-type]
    fleet = Fleet(1, Shape(**ROOM, running=10**6 if sharing else 1), costs, Random(0))
    found = run(fleet, trace, lambda fleet, request: 0)
    return float(np.mean([one.end - one.arrival for one in found[requests // 10 :]]))


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_one_at_a_time_is_the_queue_of_theory(share: float) -> None:
    assert _mean_time("exponential", share, sharing=False) == pytest.approx(1 / (1 - share), rel=0.08)
    halves = 1 + share / (2 * (1 - share))  # constant service waits half as long
    assert _mean_time("constant", share, sharing=False) == pytest.approx(halves, rel=0.08)


def test_a_batch_that_shares_the_time_is_processor_sharing() -> None:
    """Its mean does not depend on how services vary."""
    for service in ("exponential", "constant"):
        assert _mean_time(service, 0.5, sharing=True, requests=30_000) == pytest.approx(2.0, rel=0.08)


def test_one_seed_is_one_run() -> None:
    traffic = Traffic(requests=400, adapters=50, rate=30.0, skew=1.0)
    runs = [
        run(Fleet(3, Shape(), measured(), Random(1)), TRACES["steady"](traffic), POLICIES["shipped"]())
        for _ in range(2)
    ]
    assert [one.end for one in runs[0]] == [one.end for one in runs[1]]
