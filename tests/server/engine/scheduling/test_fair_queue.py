"""The fairness of the waiting queue: who was served least comes next, and idling earns nothing."""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.fair_queue import FairQueue
from peftserve.server.engine.scheduling.sequence import Sequence

MakeSequence = Callable[..., Sequence]
LONGEST = 20
waiting = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, LONGEST)), max_size=12)
charges = st.dictionaries(st.sampled_from("abc"), st.integers(0, 50))
quick = settings(max_examples=60, deadline=None)


def fill(queue: FairQueue, make_sequence: MakeSequence, entries: list[tuple[str, int]]) -> list[Sequence]:
    sequences = [make_sequence(prompt=[0] * length, adapters=[tenant]) for tenant, length in entries]
    for sequence in sequences:
        queue.add(sequence)
    return sequences


def serve_next(queue: FairQueue) -> Sequence:
    sequence = next(queue.in_order())
    queue.remove(sequence)
    queue.charge(sequence.tenant, sequence.num_remaining)
    return sequence


@quick
@given(entries=waiting, served=charges)
def test_the_order_is_that_of_serving_one_after_another(
    make_sequence: MakeSequence, entries: list[tuple[str, int]], served: dict[str, int]
) -> None:
    """Everything once, first come first served within a tenant, and always a tenant that was served least."""
    queue = FairQueue()
    for tenant, tokens in served.items():
        queue.charge((tenant,), tokens)
    sequences = fill(queue, make_sequence, entries)
    assert len(queue) == len(list(queue)) == len(sequences)
    counters: Counter[Any] = Counter(queue._served)
    left = {tenant: deque(s for s in sequences if s.tenant == tenant) for tenant in {s.tenant for s in sequences}}
    for sequence in queue.in_order():
        assert counters[sequence.tenant] == min(counters[tenant] for tenant in left)
        assert left[sequence.tenant].popleft() is sequence
        counters[sequence.tenant] += sequence.num_remaining
        left = {tenant: rest for tenant, rest in left.items() if rest}
    assert not left


@quick
@given(entries=st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, LONGEST)), max_size=60), served=charges)
def test_tenants_that_keep_waiting_are_served_equally(
    make_sequence: MakeSequence, entries: list[tuple[str, int]], served: dict[str, int]
) -> None:
    """While two tenants wait, what they are served differs by at most two requests beyond what it did before."""
    queue = FairQueue()
    for tenant, tokens in served.items():
        queue.charge((tenant,), tokens)
    fill(queue, make_sequence, [("a", 1), ("b", 1)])
    before = dict(queue._served)
    lead = abs(before[("a",)] - before[("b",)])
    got = Counter[Any]()
    for entry in entries:
        fill(queue, make_sequence, [entry, ("a", LONGEST), ("b", LONGEST)])
        sequence = serve_next(queue)
        got[sequence.tenant] += sequence.num_remaining
        assert abs(got[("a",)] - got[("b",)]) <= lead + 2 * LONGEST


def test_a_flood_does_not_delay_another_tenant(make_sequence: MakeSequence) -> None:
    queue = FairQueue()
    fill(queue, make_sequence, [("flood", 10)] * 1000)
    for _ in range(50):
        serve_next(queue)
    fill(queue, make_sequence, [("quiet", 10)])
    assert ("quiet",) in {serve_next(queue).tenant for _ in range(2)}


def test_idling_earns_no_credit(make_sequence: MakeSequence) -> None:
    """A tenant that comes back after others were served much goes on as one of them, not before them all."""
    queue = FairQueue()
    fill(queue, make_sequence, [("idle", 10)])
    serve_next(queue)
    fill(queue, make_sequence, [("busy", 10)] * 300)
    for _ in range(200):
        serve_next(queue)
    fill(queue, make_sequence, [("idle", 10)] * 50)
    served = Counter(serve_next(queue).tenant for _ in range(40))
    assert abs(served[("busy",)] - served[("idle",)]) <= 2


def test_forgetting_idle_tenants_keeps_those_that_wait_or_run(make_sequence: MakeSequence) -> None:
    queue = FairQueue()
    for tenant in ("gone", "runs", "waits"):
        queue.charge((tenant,), 5)
    fill(queue, make_sequence, [("waits", 1)])
    queue.forget_idle({("runs",)})
    assert queue._served == {("runs",): 5, ("waits",): 5}
