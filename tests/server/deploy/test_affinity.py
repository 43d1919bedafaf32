"""What the choice promises whatever the replicas are, and what becomes of traffic that goes by it."""

import itertools
from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.deploy.affinity import Bound, ReplicaState, choose, homes

DIGESTS = st.frozensets(st.sampled_from("abcdef"), max_size=6)
SEVERAL = st.lists(
    st.builds(ReplicaState, name=st.uuids().map(str), sequences=st.integers(0, 60), device=DIGESTS, host=DIGESTS),
    min_size=1,
    max_size=6,
    unique_by=lambda replica: replica.name,
)
BOUNDS = st.builds(Bound, excess=st.floats(0.0, 2.0), free=st.integers(0, 10))
RANK = {"device": 0, "host": 1, "disk": 2}


def tier_of(replica: ReplicaState, digests: frozenset[str]) -> str:
    if digests <= set(replica.device):
        return "device"
    return "host" if digests <= {*replica.device, *replica.host} else "disk"


@given(SEVERAL, DIGESTS, BOUNDS, st.integers())
def test_no_replica_goes_over_the_bound_and_none_below_it_is_nearer(replicas, digests, bound, seed):
    choice = choose(replicas, digests, Random(seed), bound)
    chosen = next(replica for replica in replicas if replica.name == choice.name)
    most = bound.most(replicas)
    assert chosen.sequences + 1 <= most
    assert choice.tier == tier_of(chosen, digests)
    nearest = min(RANK[tier_of(replica, digests)] for replica in replicas if replica.sequences < most)
    assert RANK[choice.tier] == nearest


@given(SEVERAL, DIGESTS, st.integers())
def test_of_two_the_less_busy_is_taken(replicas, digests, seed):
    same = [replace(replica, device=digests) for replica in replicas[:2]]
    choice = choose(same, digests, Random(seed))
    assert next(r for r in same if r.name == choice.name).sequences == min(r.sequences for r in same)


@given(SEVERAL, DIGESTS)
def test_a_home_is_the_same_in_any_order_and_moves_only_with_its_replica(replicas, digests):
    order = [replica.name for replica in homes(replicas, digests)]
    assert [replica.name for replica in homes(replicas[::-1], digests)] == order
    left = [replica for replica in replicas if replica.name != order[0]]
    assert [replica.name for replica in homes(left, digests)] == order[1:]


def test_homes_are_spread_over_the_replicas():
    replicas = [ReplicaState(f"replica-{i}", 0) for i in range(4)]
    first = Counter(homes(replicas, [f"digest-{i}"])[0].name for i in range(400))
    assert min(first.values()) > 60


def given_out(num_replicas, wanted, running, bound):
    """Give sequences out, of which `running` run at once, to replicas that keep each adapter. Returns who has which."""
    draw, has, busy = Random(1), {f"r{i}": set() for i in range(num_replicas)}, Counter()
    running_now = []
    for digest in wanted:
        states = [ReplicaState(name, busy[name], device) for name, device in has.items()]
        choice = choose(states, [digest] if digest else [], draw, bound)
        has[choice.name] |= {digest} - {""}
        busy[choice.name] += 1
        running_now.append(choice.name)
        if len(running_now) > running:
            busy[running_now.pop(0)] -= 1
    return has, busy


def test_an_adapter_that_few_ask_for_stays_on_one_replica():
    has, _ = given_out(4, [str(i % 40) for i in range(2000)], 6, Bound(free=8))
    assert all(sum(digest in digests for digests in has.values()) == 1 for digest in map(str, range(40)))


def test_one_that_all_ask_for_spreads_until_all_are_as_busy():
    has, busy = given_out(4, itertools.repeat("hot", 2000), 200, Bound(excess=0.25))
    assert all(digests == {"hot"} for digests in has.values())
    assert max(busy.values()) <= 1.25 * 201 / 4 + 1


def test_the_base_alone_is_dealt_out_evenly():
    _, busy = given_out(4, itertools.repeat("", 2000), 200, Bound())
    assert max(busy.values()) - min(busy.values()) <= 12
