import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from peftserve.adapters.routing import compiled
from peftserve.adapters.routing.bodies import Alias
from peftserve.adapters.routing.compiled import CompiledRoutes
from peftserve.adapters.routing.policies import KINDS, Policy
from peftserve.adapters.routing.query import PolicyNeeded
from peftserve.adapters.routing.stored import Route


def route(name: str, version: int = 1, text: str = '{"kind": "alias", "target": "a"}') -> Route:
    return Route(name, version, 0.0, text)


def asker(routes: CompiledRoutes) -> tuple[Callable[[Route], Policy], list[Route]]:
    """Return a function that asks for a route's policy, and the routes whose bodies were read for it."""
    read: list[Route] = []

    def ask(one: Route) -> Policy:
        return routes.policy(one.head, lambda: read.append(one) or one)  # type: ignore[func-returns-value]

    return ask, read


def test_a_body_is_read_once_for_each_version() -> None:
    ask, read = asker(CompiledRoutes())
    policies = [ask(route("r")), ask(route("r")), ask(route("r", 2)), ask(route("s"))]
    assert policies[0] is policies[1]
    assert len({id(policy) for policy in policies}) == len(read) == 3


def test_the_least_used_go_by_number_and_by_size() -> None:
    ask, read = asker(CompiledRoutes(most=2))
    for name in ("a", "b", "a", "c", "a", "b"):
        ask(route(name))
    assert [one.name for one in read] == ["a", "b", "c", "b"]
    text = '{"kind": "alias", "target": "a"}' + " " * 100
    ask, read = asker(CompiledRoutes(most_text=300))
    for name in ("a", "b", "c", "b", "a"):
        ask(route(name, text=text))
    assert [one.name for one in read] == ["a", "b", "c", "a"]


def test_what_is_slow_is_made_on_threads_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[threading.Thread] = []

    def make(body: Alias, _: Route) -> Policy:
        made.append(threading.current_thread())
        time.sleep(0.02)
        return KINDS[Alias].make(body, route("r"))

    monkeypatch.setattr(compiled, "KINDS", {**KINDS, Alias: KINDS[Alias]._replace(make=make, is_slow=True)})
    ask, _ = asker(CompiledRoutes())
    needs = []
    for _ in range(4):
        with pytest.raises(PolicyNeeded) as needed:
            ask(route("r"))
        needs.append(needed.value.make)
    assert made == []
    with ThreadPoolExecutor(4) as threads:
        policies = {id(policy) for policy in threads.map(lambda make: make(), needs)}
    assert len(made) == 1
    assert policies == {id(ask(route("r")))}
