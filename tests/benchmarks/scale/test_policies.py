"""The indexed choice is the server's own, and each policy does what its name says."""

from collections import Counter
from random import Random

import pytest

from benchmarks.scale.costs import measured
from benchmarks.scale.fleet import Fleet, Policy, run
from benchmarks.scale.policies import POLICIES, indexed, shipped
from benchmarks.scale.replica import Request, Shape
from benchmarks.scale.workload import TRACES, Traffic
from peftserve.server.deploy.affinity import Bound

SMALL = Shape(device=1.5e9, slots=8, host=3e9)


def ends(policy: Policy, kind: str, size: int) -> list[float]:
    traffic = Traffic(requests=600, adapters=80, rate=12.0 * size, skew=0.9)
    return [one.end for one in run(Fleet(size, SMALL, measured(), Random(2)), TRACES[kind](traffic), policy)]


@pytest.mark.parametrize("kind", TRACES)
@pytest.mark.parametrize("bound", [Bound(), Bound(0.05, 2)])
def test_the_indexed_choice_is_the_servers_own(kind: str, bound: Bound) -> None:
    """To the last request, from the same draws; with a tight bound also where all known homes are over it."""
    assert ends(indexed(bound), kind, 20) == ends(shipped(bound), kind, 20)


def choices(name: str, wanted: list[int], size: int = 8) -> list[int]:
    """Return where a policy sends requests for these adapters, each of which ends at once."""
    fleet = Fleet(size, SMALL, measured(), Random(0))
    policy = POLICIES[name]()
    return [policy(fleet, Request(number, 0.0, adapter, 16, 100, 10)) for number, adapter in enumerate(wanted)]


def test_an_adapter_is_at_home_where_nobody_is_busy() -> None:
    assert len(set(choices("hash", [5] * 50))) == 1
    assert len(set(choices("shipped", [5] * 50))) == 1
    assert len(set(choices("two choices", [5] * 50))) > 1
    assert len(set(choices("hash", list(range(200))))) == 8


def test_the_ring_goes_on_where_a_replica_is_over_the_bound() -> None:
    fleet, policy = Fleet(4, SMALL, measured(), Random(0)), POLICIES["hash"]()
    given: Counter[int] = Counter()
    for number in range(100):  # none of which ends
        chosen = policy(fleet, Request(number, 0.0, 7, 16, 100, 10))
        fleet.sequences[chosen] += 1
        fleet.total += 1
        given[chosen] += 1
        assert given[chosen] <= max(8, 1.25 * fleet.total / 4 + 1)
    assert len(given) == 4


def test_an_adapter_that_all_ask_for_gets_more_replicas() -> None:
    fleet, policy = Fleet(8, SMALL, measured(), Random(0)), POLICIES["replicate-hot"]()
    fleet.total = 8 * 24
    asked = [policy(fleet, Request(number, 0.0, number % 2 * number, 16, 100, 10)) for number in range(40_000)]
    assert len(set(asked[:20_000:2])) == 2
    assert len(set(asked[20_000::2])) == 4  # half of the traffic


def test_the_rank_that_a_batch_has_counts() -> None:
    fleet, policy = Fleet(2, SMALL, measured(), Random(0)), POLICIES["rank-aware"]()
    fleet.replicas[0].ranks = 10_000.0
    assert {policy(fleet, Request(0, 0.0, 3, 64, 100, 10)) for _ in range(10)} == {1}
