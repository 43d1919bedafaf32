"""The fairness of the waiting queue: who was served least for its weight comes next, and idling earns nothing."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.fair_queue import FairQueue
from peftserve.server.engine.scheduling.sequence import Payer, Sequence

MakeSequence = Callable[..., Sequence]
LONGEST = 20
TENANTS = "xyz"
entries_of = st.tuples(
    st.sampled_from(TENANTS), st.sampled_from("abc"), st.integers(1, LONGEST), st.integers(-1, 1)
)  # tenant, adapter, tokens, priority
weights_of = st.fixed_dictionaries({tenant: st.sampled_from([0.25, 1.0, 2.0, 7.5]) for tenant in TENANTS})
charges = st.dictionaries(st.tuples(st.sampled_from(TENANTS), st.sampled_from("abc")), st.integers(0, 50))
quick = settings(max_examples=60, deadline=None)
Entry = tuple[str, str, int, int]


@pytest.fixture
def make(make_sequence: MakeSequence) -> Callable[..., Sequence]:
    def made(tenant: str, adapter: str = "a", tokens: int = 10, priority: int = 0, weight: float = 1.0) -> Sequence:
        return make_sequence([0] * tokens, [adapter], priority=priority, tenant=tenant, weight=weight)

    return made


def fill(queue: FairQueue, sequences: list[Sequence]) -> list[Sequence]:
    for sequence in sequences:
        queue.add(sequence)
    return sequences


def serve_next(queue: FairQueue) -> Sequence:
    sequence = next(queue.in_order())
    queue.remove(sequence)
    queue.charge(sequence.payer, sequence.num_remaining)
    return sequence


@quick
@given(entries=st.lists(entries_of, max_size=14), weights=weights_of, served=charges)
def test_the_order_is_that_of_serving_one_after_another(
    make_sequence: MakeSequence, entries: list[Entry], weights: dict[str, float], served: dict[tuple[str, str], int]
) -> None:
    """Everything once: the tenant that was served least for its weight, its lowest priority, its least served adapter,
    and of those the first that came."""
    queue = FairQueue()
    for (tenant, adapter), tokens in served.items():
        queue.charge(Payer(tenant, (adapter,)), tokens)
    made = [
        make_sequence([0] * n, [adapter], priority=p, tenant=tenant, weight=weights[tenant])
        for tenant, adapter, n, p in entries
    ]
    fill(queue, made)
    assert len(queue) == len(list(queue)) == len(made)
    assert bool(queue) == bool(made)
    tenants: Counter[Any] = Counter(queue._counters.served)
    adapters = {tenant: Counter(line.counters.served) for tenant, line in queue._lines.items()}
    left = list(made)
    for sequence in queue.in_order():
        tenant, mixture = sequence.payer
        assert tenants[tenant] == min(tenants[other.tenant] for other in left)
        own = [other for other in left if other.tenant == tenant]
        assert sequence.priority == min(other.priority for other in own)
        equals = [other for other in own if other.priority == sequence.priority]
        assert adapters[tenant][mixture] == min(adapters[tenant][other.payer.mixture] for other in equals)
        assert sequence is next(other for other in equals if other.payer.mixture == mixture)
        tenants[tenant] += sequence.num_remaining / sequence.weight
        adapters[tenant][mixture] += sequence.num_remaining
        left.remove(sequence)
    assert not left
    assert {serve_next(queue).request_id for _ in made} == {sequence.request_id for sequence in made}
    assert not queue


@quick
@given(
    entries=st.lists(entries_of, max_size=80),
    weights=weights_of,
    served=charges,
)
def test_tenants_that_keep_waiting_get_their_shares(
    make_sequence: MakeSequence, entries: list[Entry], weights: dict[str, float], served: dict[tuple[str, str], int]
) -> None:
    """While all wait, what two were served for their weights differs by one request at most, beyond what it did."""
    queue = FairQueue()
    for (tenant, adapter), tokens in served.items():
        queue.charge(Payer(tenant, (adapter,)), tokens)

    def keep_waiting() -> None:
        waiting = Counter(sequence.tenant for sequence in queue)
        for tenant in TENANTS:
            if waiting[tenant] < 2:
                queue.add(make_sequence([0] * LONGEST, tenant=tenant, weight=weights[tenant]))

    keep_waiting()
    before = dict(queue._counters.served)
    lead = max(before.values()) - min(before.values())
    step = LONGEST / min(weights.values())
    got = dict.fromkeys(TENANTS, 0.0)
    for tenant, adapter, tokens, priority in entries:
        queue.add(make_sequence([0] * tokens, [adapter], priority=priority, tenant=tenant, weight=weights[tenant]))
        sequence = serve_next(queue)
        got[sequence.tenant] += sequence.num_remaining / weights[sequence.tenant]
        keep_waiting()
        counters = {tenant: before[tenant] + got[tenant] for tenant in TENANTS}
        assert max(counters.values()) - min(counters.values()) <= max(lead, step) + 1e-6


@quick
@given(entries=st.lists(entries_of, min_size=1, max_size=40), weights=weights_of)
def test_nobody_is_starved(make_sequence: MakeSequence, entries: list[Entry], weights: dict[str, float]) -> None:
    """One request that waits among tenants that flood, at any priority, begins within what its share allows."""
    queue = FairQueue()
    for tenant, adapter, tokens, priority in entries:
        queue.add(make_sequence([0] * tokens, [adapter], priority=priority, tenant=tenant, weight=weights[tenant]))
    quiet = make_sequence([0] * LONGEST, tenant="quiet", priority=9)
    queue.add(quiet)
    before = max(queue._counters.served.values())
    most = sum(weight * before + LONGEST for weight in weights.values())  # until all have passed the newcomer
    taken = 0
    while (sequence := serve_next(queue)) is not quiet:
        taken += sequence.num_remaining
        tenant = sequence.tenant
        queue.add(make_sequence([0] * LONGEST, priority=-9, tenant=tenant, weight=weights[tenant]))
        assert taken <= most


@quick
@given(busy=st.integers(1, 300), weight=st.sampled_from([0.5, 1.0, 4.0]))
def test_idling_saves_no_credit(make_sequence: MakeSequence, busy: int, weight: float) -> None:
    """Who comes back after others were served much goes on as one of them: the next served are shared by weight."""
    queue = FairQueue()
    queue.add(make_sequence([0] * 10, tenant="idle"))
    serve_next(queue)
    for _ in range(busy + 100):
        queue.add(make_sequence([0] * 10, tenant="busy", weight=weight))
    for _ in range(busy):
        serve_next(queue)
    for _ in range(100):
        queue.add(make_sequence([0] * 10, tenant="idle"))
    served = Counter(serve_next(queue).tenant for _ in range(60))
    assert abs(served["busy"] / weight - served["idle"]) <= 1 + 1 / weight


def test_a_flood_does_not_delay_another_tenant_nor_another_adapter(make: Callable[..., Sequence]) -> None:
    queue = FairQueue()
    fill(queue, [make("flood", priority=-5) for _ in range(1000)])
    for _ in range(50):
        serve_next(queue)
    fill(queue, [make("quiet", priority=5), make("flood", "b", priority=-5)])
    assert Payer("quiet", ("a",)) in {serve_next(queue).payer for _ in range(2)}
    assert Payer("flood", ("b",)) in {serve_next(queue).payer for _ in range(2)}


def test_a_weight_holds_from_the_request_that_brings_it(make: Callable[..., Sequence]) -> None:
    queue = FairQueue()
    fill(queue, [make("x") for _ in range(50)] + [make("y") for _ in range(50)])
    assert Counter(serve_next(queue).tenant for _ in range(20)) == {"x": 10, "y": 10}
    queue.add(make("x", weight=3.0))
    assert Counter(serve_next(queue).tenant for _ in range(20)) == {"x": 15, "y": 5}


def test_forgetting_keeps_those_that_wait_or_run(make: Callable[..., Sequence]) -> None:
    queue = FairQueue()
    for tenant in ("gone", "runs", "waits"):
        for adapter in ("a", "b"):
            queue.charge(Payer(tenant, (adapter,)), 5)
    queue.add(make("waits"))
    queue.forget_idle({Payer("runs", ("b",))})
    assert queue._counters.served == {"runs": 10, "waits": 10}
    assert {tenant: line.counters.served for tenant, line in queue._lines.items()} == {
        "runs": {("b",): 5},
        "waits": {("a",): 5},
    }


def test_priorities_order_what_one_tenant_has_and_nothing_else(make: Callable[..., Sequence]) -> None:
    queue = FairQueue()
    made = [
        make("x", adapter, 10, priority)
        for priority, adapter in [(0, "a"), (5, "a"), (-3, "a"), (-3, "a"), (-3, "b"), (0, "b"), (0, "a")]
    ]
    other = make("y", priority=100)
    fill(queue, [*made, other])
    # "a" was served twice at -3 and so comes second at 0; "y" has its turn after one of "x".
    wanted = [made[2], other, *(made[i] for i in (4, 3, 5, 0, 6, 1))]
    assert list(queue.in_order()) == wanted
    assert [serve_next(queue) for _ in wanted] == wanted
    assert not queue
    assert len(queue) == 0


def test_first_come_first_served_where_nothing_else_decides(make: Callable[..., Sequence]) -> None:
    queue = FairQueue()
    made = deque(fill(queue, [make("x") for _ in range(9)]))
    while made:
        assert serve_next(queue) is made.popleft()
