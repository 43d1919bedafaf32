import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.adapters.routing.bodies import Arm, Ramp, Split
from peftserve.adapters.routing.query import Query
from peftserve.adapters.routing.split import arm_chooser, rendezvous

USERS = [f"user-{number}" for number in range(2000)]
WEIGHTS = st.lists(st.floats(0.05, 10) | st.just(0.0), min_size=2, max_size=6).filter(any)
SURE = 5.5  # standard deviations; a run tries a few hundred shares


def chosen(weights: list[float], salt: str = "s", ramp: Ramp | None = None, now: float = 0.0) -> list[int]:
    """Return the arm of each user. The route was put at the time 0."""
    arms = tuple(Arm(f"a@{number}", weight) for number, weight in enumerate(weights))
    choose = arm_chooser(Split(arms, sticky="user", salt=salt, ramp=ramp), "route", 0.0)
    return [choose(Query(user=user, now=now)) for user in USERS]


def assert_shares(arms: list[int], shares: list[float]) -> None:
    counts = Counter(arms)
    for number, share in enumerate(shares):
        deviation = math.sqrt(len(arms) * share * (1 - share))
        assert abs(counts[number] - share * len(arms)) <= SURE * deviation + 1e-6, (number, shares)


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.text(max_size=8))
def test_shares_are_as_the_weights_and_stay(weights: list[float], salt: str) -> None:
    arms = chosen(weights, salt)
    assert_shares(arms, [weight / sum(weights) for weight in weights])
    assert chosen(weights, salt) == arms


@settings(max_examples=25, deadline=None)
@given(WEIGHTS, st.data())
def test_only_those_move_who_must(weights: list[float], data: st.DataObject) -> None:
    """When one weight changes, all movement is to its arm or from it, in one direction, as many as the shares say."""
    number = data.draw(st.integers(0, len(weights) - 1))
    changed = [*weights]
    changed[number] = data.draw(st.floats(0.05, 10))
    before, after = chosen(weights), chosen(changed)
    moved = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    grows = changed[number] > weights[number]
    assert all((new if grows else old) == number for old, new in moved)
    must = abs(changed[number] / sum(changed) - weights[number] / sum(weights))
    assert abs(len(moved) - must * len(USERS)) <= SURE * math.sqrt(len(USERS) * must * (1 - must)) + 1e-6
    scaled = [3 * weight for weight in weights]
    assert chosen(scaled) == before


def test_a_salt_deals_anew_and_the_route_s_name_is_one() -> None:
    one, two = chosen([1, 1], "one"), chosen([1, 1], "two")
    assert 0.4 < sum(a == b for a, b in zip(one, two, strict=True)) / len(USERS) < 0.6
    assert chosen([1, 1], "") == chosen([1, 1], "route")


@pytest.mark.parametrize(("now", "share"), [(-5, 0.01), (0, 0.01), (25, 0.1325), (50, 0.255), (100, 0.5), (1e9, 0.5)])
def test_a_ramp_goes_by_the_clock_and_moves_users_one_way(now: float, share: float) -> None:
    ramp = Ramp(arm=1, start=0.01, end=0.5, seconds=100)
    arms = chosen([3, 7, 1], ramp=ramp, now=now)
    assert_shares(arms, [(1 - share) * 0.75, share, (1 - share) * 0.25])
    later = chosen([3, 7, 1], ramp=ramp, now=now + 10)
    assert all(new == 1 for old, new in zip(arms, later, strict=True) if old != new)


def test_a_ramp_may_begin_at_none_and_end_at_all() -> None:
    ramp = Ramp(arm=0, start=0, end=1, seconds=10)
    assert 0 not in chosen([1, 1], ramp=ramp, now=0)
    assert set(chosen([1, 1], ramp=ramp, now=10)) == {0}
    assert set(chosen([1, 0], ramp=Ramp(arm=0, start=0, end=0.5, seconds=10), now=0)) == {0}  # nobody else is there


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.floats(0, 1, exclude_max=True))
def test_without_a_user_each_request_is_drawn(weights: list[float], draw: float) -> None:
    arms = tuple(Arm("a", weight) for weight in weights)
    for sticky in (None, "user", "header:x-tenant"):
        number = arm_chooser(Split(arms, sticky=sticky), "r", 0.0)(Query(draw=lambda: draw))
        assert weights[number] > 0
        below, upto = sum(weights[:number]), sum(weights[: number + 1])
        assert below - 1e-9 <= draw * sum(weights) <= upto + 1e-9


def test_a_header_is_found_in_any_case() -> None:
    arms = (Arm("a", 1), Arm("b", 1))
    choose = arm_chooser(Split(arms, sticky="header:X-Tenant"), "r", 0.0)
    seen = {choose(Query(header={"x-tenant": f"t{n}"}.get, draw=lambda: 2.0)) for n in range(30)}
    assert seen == {0, 1}


def test_equal_targets_are_told_apart() -> None:
    arms = (Arm("a", 1), Arm("a", 1))
    choose = arm_chooser(Split(arms, sticky="user"), "r", 0.0)
    assert_shares([choose(Query(user=user)) for user in USERS], [0.5, 0.5])
    assert rendezvous([0, 1e-9], ["a", "b"], "x") == 1
