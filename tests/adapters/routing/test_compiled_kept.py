"""Which policies are kept: those used last, within a number and an amount of text."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from peftserve.adapters.routing.bodies import Match
from peftserve.adapters.routing.compiled import CompiledRoutes
from peftserve.adapters.routing.policies import KINDS, Policy
from peftserve.adapters.routing.query import PolicyNeeded
from peftserve.adapters.routing.stored import Route


def by_content(name: str, example: str = "show all users", version: int = 1) -> Route:
    body = {"kind": "match", "candidates": [{"target": "sql", "examples": [example]}]}
    return Route(name, version, 0.0, json.dumps(body))


def is_kept(compiled: CompiledRoutes, route: Route) -> bool:
    try:
        compiled.policy(route)
    except PolicyNeeded:
        return False
    return True


def make(compiled: CompiledRoutes, route: Route) -> Policy:
    """Make a policy as the server does: on demand, and then it is there."""
    with pytest.raises(PolicyNeeded) as needed:
        compiled.policy(route)
    needed.value.make()
    return compiled.policy(route)


def test_an_index_is_made_outside_of_the_look_up_and_once_for_a_version() -> None:
    compiled, route = CompiledRoutes(), by_content("auto")
    policy = make(compiled, route)
    assert compiled.policy(route) is policy
    assert not is_kept(compiled, by_content("auto", version=2))


def test_many_who_need_the_same_one_make_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    kind = KINDS[Match]
    slow = kind._replace(make=lambda body, route: made.append(route) or time.sleep(0.05) or kind.make(body, route))
    monkeypatch.setattr("peftserve.adapters.routing.compiled.KINDS", {**KINDS, Match: slow})
    compiled, route = CompiledRoutes(), by_content("auto")
    needed = []
    for _ in range(8):
        with pytest.raises(PolicyNeeded) as one:
            compiled.policy(route)
        needed.append(one.value.make)
    with ThreadPoolExecutor(8) as threads:
        [*threads.map(lambda make: make(), needed)]
    assert made == [route]


def test_those_used_last_are_kept() -> None:
    compiled, (a, b, c) = CompiledRoutes(most=2), map(by_content, "abc")
    make(compiled, a)
    make(compiled, b)
    assert is_kept(compiled, a)
    make(compiled, c)
    assert [is_kept(compiled, route) for route in (a, b, c)] == [True, False, True]


def test_large_ones_leave_room_for_few() -> None:
    routes = [by_content(name, "x" * 900) for name in "abc"]
    compiled = CompiledRoutes(most_text=2500)
    for route in routes:
        make(compiled, route)
    assert [is_kept(compiled, route) for route in routes] == [False, True, True]
    huge = by_content("huge", "x" * 5000)
    make(compiled, huge)
    assert [is_kept(compiled, route) for route in (*routes, huge)] == [False, False, False, True]
