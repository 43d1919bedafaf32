"""Shares of the seats and of the pages: who has too much, who too little, and whose place goes."""

from collections import Counter
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.sequence import Sequence
from peftserve.server.engine.scheduling.shares import LEAST_TURN, Shares

MakeSequence = Callable[..., Sequence]
tenants = st.sampled_from("abcde")
weights = st.fixed_dictionaries({tenant: st.sampled_from([0.1, 1.0, 2.5]) for tenant in "abcde"})


@settings(max_examples=300, deadline=None)
@given(running=st.lists(tenants, min_size=1, max_size=12), waiting=st.sets(tenants, min_size=1), weights=weights)
def test_seats_that_go_over_never_come_back(
    make_sequence: MakeSequence, running: list[str], waiting: set[str], weights: dict[str, float]
) -> None:
    """Moved one by one, they come to rest, at once a tenant that waits lacks one or none has too many."""
    of = {tenant: weight for tenant, weight in weights.items() if tenant in waiting or tenant in running}
    seats, gave, took = Counter(running), set[str](), set[str]()
    for _ in range(len(running) + 1):
        sequences = [make_sequence(tenant=t, weight=of[t]) for t in seats.elements()]
        shares = Shares(len(running), sequences, of)
        able = [sequence.tenant for sequence in sequences if shares.exceeds(sequence)]
        lacking = [tenant for tenant in waiting if shares.lacks(tenant)]
        if not able or not lacking:
            break
        seats[able[0]] -= 1
        seats[lacking[0]] += 1
        gave.add(able[0])
        took.add(lacking[0])
    else:
        raise AssertionError("seats go round")
    assert not gave & took
    assert all(seats[tenant] for tenant in running), "none that ran has lost its last seat"


def test_the_newest_of_the_tenant_furthest_above_its_share_gives_its_seat(make_sequence: MakeSequence) -> None:
    heavy = [make_sequence([0] * 4, tenant="heavy", weight=3.0, max_tokens=99) for _ in range(4)]
    light = [make_sequence([0] * 4, tenant="light", weight=1.0, max_tokens=99) for _ in range(4)]
    shares = Shares(8, [*heavy, *light], {"new": 1.0})
    assert shares.giver([*heavy, *light]) is None, "none has had its turn"
    for sequence in [*heavy, *light]:
        sequence.tokens += [1] * LEAST_TURN
    assert shares.giver([*heavy, *light]) is light[-1]
    light[-1].turns_lost = 1
    assert shares.giver([*heavy, *light]) is light[-2], "the last has to run for twice as long the second time"
    assert shares.giver(heavy) is None, "four of eight seats are less than three fifths"


def test_what_is_about_to_end_keeps_its_seat(make_sequence: MakeSequence) -> None:
    ending, longer = (make_sequence([0], tenant="a", max_tokens=most) for most in (2 * LEAST_TURN, 2 * LEAST_TURN + 1))
    for sequence in (ending, longer):
        sequence.tokens += [1] * LEAST_TURN
    shares = Shares(2, [ending, longer], {"b": 1.0})
    assert shares.giver([ending]) is None
    assert shares.giver([longer, ending]) is longer


def test_shares_of_pages_go_by_what_each_holds(make_sequence: MakeSequence) -> None:
    large, small, other = (make_sequence([0], tenant=tenant, max_tokens=99) for tenant in ("a", "a", "b"))
    for sequence, pages in ((large, 5), (small, 2), (other, 3)):
        sequence.tokens += [1] * LEAST_TURN
        sequence.pages = [*range(pages)]
    shares = Shares(10, [large, small, other], {}, lambda sequence: len(sequence.pages))
    assert (shares.lacks("b", 2), shares.lacks("b", 3), shares.lacks("a")) == (True, False, False)
    assert shares.giver([large, small, other]) is small, "without the large one its tenant has less than its share"
    assert shares.without([small]).giver([large, other]) is None
    assert shares.furthest([large, other]) is large
