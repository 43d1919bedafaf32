import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from peftserve.adapters.errors import AdapterNotFound, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import VersionRef
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.resolved import Member, Resolved
from peftserve.adapters.router import Router
from peftserve.adapters.routing.found import Hop
from peftserve.adapters.routing.policies import targets_of
from peftserve.adapters.routing.query import LoadNeeded, Query
from peftserve.adapters.routing.stored import RouteStore

A1, A2, B1 = VersionRef("a", 1, "1" * 64), VersionRef("a", 2, "2" * 64), VersionRef("b", 1, "1" * 64)
BASE = Resolved((), "org/demo", "org/demo")


@pytest.fixture
def router(registry: AdapterRegistry, facts: AdapterFacts) -> Router:
    for ref in (A1, A2, B1):
        registry.add(ref.name, ref.digest, facts)
    return Router(registry, "org/demo")


def test_the_base(router: Router) -> None:
    assert router.resolve("org/demo") == router.resolve(None) == router.resolve("default") == BASE
    assert router.alone("org/demo") == router.alone(None) == router.alone("a route") == BASE


@pytest.mark.parametrize(("model", "ref"), [("a", A2), ("a@1", A1), ("a@2", A2), ("b", B1)])
def test_one_adapter(router: Router, model: str, ref: VersionRef) -> None:
    assert router.resolve(model) == Resolved((Member(ref, 1.0),), str(ref), model) == router.alone(model)


@pytest.mark.parametrize(
    "model", ["", "c", "a@3", "a@0", "A", "demo", "org/demo@1", "default@1", "a b", "a@1@2", "x" * 999]
)
def test_anything_else_is_not_found_and_never_the_base(router: Router, model: str) -> None:
    with pytest.raises(AdapterNotFound, match="there is no model or adapter") as error:
        router.resolve(model)
    assert error.value.param == "model"
    assert len(error.value.message) < 200


def test_the_default_follows_its_setting(router: Router, registry: AdapterRegistry, facts: AdapterFacts) -> None:
    registry.set_default("a")
    assert router.resolve(None) == router.resolve("default") == Resolved((Member(A2, 1.0),), "a@2", "a@2")
    assert router.resolve("org/demo") == BASE
    registry.add("a", "3" * 64, facts)
    assert router.resolve(None).label == "a@3"
    registry.set_default("a@1")
    assert router.resolve(None).label == "a@1"
    assert router.alone(None) == router.resolve(None)
    registry.set_default(None)
    assert router.resolve(None) == BASE


@pytest.mark.parametrize("model", [None, "default", "org/demo"])
def test_a_mixture(router: Router, registry: AdapterRegistry, model: str | None) -> None:
    registry.set_default("b")  # a mixture is on the base, whatever the default
    resolved = router.resolve(model, [("a", 0.7), ("b", -0.3)])
    assert resolved.members == (Member(A2, 0.7), Member(B1, -0.3))
    assert resolved.label == resolved.model == "a@2*0.7+b@1*-0.3"
    assert resolved.weights() == {A2.digest: 0.7, B1.digest: -0.3}


def test_two_names_of_one_content_add_up(router: Router) -> None:
    assert router.resolve(None, [("a@1", 0.5), ("b", 0.25)]).weights() == {A1.digest: 0.75}


@pytest.mark.parametrize(
    ("model", "adapters", "message"),
    [
        ("a", [("b", 1.0)], "beside a mixture, model is 'org/demo'"),
        (None, [], "1 to 8 adapters, this one 0"),
        (None, [(f"a{i}", 1.0) for i in range(9)], "1 to 8 adapters, this one 9"),
        (None, [("a", 1.0), ("a@2", 1.0)], "only once"),
        (None, [("a", math.nan)], "weight of 'a' must be a number between"),
        (None, [("a", -math.inf)], "weight of 'a'"),
        (None, [("a", 1e5)], "weight of 'a'"),
    ],
)
def test_malformed_mixtures(
    router: Router, model: str | None, adapters: Sequence[tuple[str, float]], message: str
) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        router.resolve(model, adapters)


@pytest.mark.parametrize("name", ["c", "org/demo", "default", "a@9"])
def test_parts_of_a_mixture_must_be_adapters(router: Router, name: str) -> None:
    with pytest.raises(AdapterNotFound) as error:
        router.resolve(None, [("a", 1.0), (name, 1.0)])
    assert error.value.param == "adapters"


def test_a_route_asks_its_policy(registry: AdapterRegistry, router: Router, tmp_path: Path) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes)
    routes.put("newest", '{"kind": "alias", "target": "a"}')
    routes.put("bare", '{"kind": "alias", "target": "org/demo"}')
    resolved = router.resolve("newest")
    assert (resolved.members, resolved.model, resolved.label) == ((Member(A2, 1.0),), "a@2", "a@2")
    assert [(hop.route, hop.version, hop.chosen) for hop in resolved.hops] == [("newest", 1, "a")]
    assert router.resolve("bare").members == ()
    registry.set_default("newest")
    assert router.resolve(None) == resolved


@pytest.fixture
def add(registry: AdapterRegistry, facts: AdapterFacts) -> Callable[..., VersionRef]:
    """Registers an adapter with other facts."""

    def register(name: str, digest: str, **fields: Any) -> VersionRef:
        return registry.add(name, digest * 64, msgspec.structs.replace(facts, **fields)).ref

    return register


Add = Callable[..., VersionRef]


def test_a_mixture_that_would_depend_on_its_order_is_refused(router: Router, add: Add) -> None:
    for name in "cd":
        add(name, name, exclusive=("DoRA",))
    for name in "ef":
        add(name, name, primitives={"kv_prefix": 1}, virtual_tokens=5)
    assert router.resolve(None, [("a", 1.0), ("c", 0.5)]).label == "a@2*1+c@1*0.5"
    with pytest.raises(InvalidAdapter, match="two DoRA adapters, c@1 and d@1, cannot be mixed"):
        router.resolve(None, [("c", 0.5), ("a", 1.0), ("d", 0.5)])
    with pytest.raises(InvalidAdapter, match="two KV prefixes, of e@1 and f@1, cannot be mixed"):
        router.resolve(None, [("e", 0.5), ("f", 0.5)])
    with pytest.raises(InvalidAdapter, match="e@1 has a KV prefix, which no weight scales") as error:
        router.resolve(None, [("e", 0.5)])
    assert error.value.param == "adapters"


def test_one_content_under_two_names_is_one_adapter_in_a_mixture(router: Router, add: Add) -> None:
    for name in "cd":
        add(name, "c", exclusive=("DoRA",), primitives={"kv_prefix": 1})
    assert router.resolve(None, [("c", 0.25), ("d", 0.75)]).weights() == {"c" * 64: 1.0}
    with pytest.raises(InvalidAdapter, match="d@1 has a KV prefix, which no weight scales"):
        router.resolve(None, [("c", 0.25), ("d", 0.25)])


def test_virtual_tokens_are_the_adapter_s(router: Router, registry: AdapterRegistry, add: Add) -> None:
    add("c", "c", primitives={"kv_prefix": 1}, virtual_tokens=5)
    assert router.resolve("c").virtual_tokens == router.resolve(None, [("c", 1.0)]).virtual_tokens == 5
    assert router.resolve("a").virtual_tokens == router.resolve(None).virtual_tokens == 0
    registry.set_default("c")
    assert router.resolve(None).virtual_tokens == 5


def test_tasks_go_to_the_adapters_that_have_them(router: Router, add: Add) -> None:
    poly = add("poly", "c", num_tasks=3)
    assert router.resolve("poly").tasks(0) == {poly.digest: 0}
    assert router.resolve("poly").tasks(2) == {poly.digest: 2}
    assert router.resolve(None, [("a", 1.0), ("poly", 0.5)]).tasks(1) == {poly.digest: 1}
    assert router.resolve("a").tasks(None) == router.resolve(None).tasks(None) == {}


@pytest.mark.parametrize(
    ("model", "task_id", "message"),
    [
        ("poly", None, r"poly@1 has 3 tasks: give one of 0 to 2"),
        ("poly", 3, r"poly@1 has 3 tasks: give one of 0 to 2"),
        ("poly", -1, r"poly@1 has 3 tasks: give one of 0 to 2"),
        ("a", 0, r"a@2 has no tasks: leave task_id out"),
        ("org/demo", 0, r"org/demo has no tasks: leave task_id out"),
        (None, 1, r"org/demo has no tasks: leave task_id out"),
    ],
)
def test_tasks_that_are_missing_or_not_there(
    router: Router, add: Add, model: str | None, task_id: int | None, message: str
) -> None:
    add("poly", "c", num_tasks=3)
    resolved = router.resolve(model)
    with pytest.raises(InvalidAdapter, match=message) as error:
        resolved.tasks(task_id)
    assert error.value.param == "task_id"


def test_a_fallback_passes_over_what_is_damaged(registry: AdapterRegistry, router: Router, tmp_path: Path) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes)
    routes.put("safe", '{"kind": "fallback", "targets": ["a", "a@1", "org/demo"]}')
    assert router.resolve("safe").label == "a@2"
    registry.set_damaged(A2.digest, "gone")
    assert router.resolve("safe").label == "a@1"
    registry.set_damaged(A1.digest, "gone")
    assert router.resolve("safe") == Resolved(
        (), "org/demo", "org/demo", hops=(Hop("safe", 1, "org/demo", 2),)
    )  # fmt: skip
    routes.put("twice", '{"kind": "fallback", "targets": ["a", "b"]}')
    with pytest.raises(AdapterNotFound, match="none of the targets of the route 'twice' exists and can answer: a, b"):
        router.resolve("twice")


def test_a_fallback_asks_whether_what_is_in_no_memory_can_be_loaded(
    registry: AdapterRegistry, router: Router, tmp_path: Path
) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes, is_loaded={A1.digest}.__contains__)
    routes.put("safe", '{"kind": "fallback", "targets": ["a", "a@1"]}')
    with pytest.raises(LoadNeeded) as needed:
        router.resolve("safe")
    assert needed.value.ref == A2
    assert router.resolve("safe", query=Query(loads={A2.digest: True})).label == "a@2"
    assert router.resolve("safe", query=Query(loads={A2.digest: False})).label == "a@1"
    assert router.resolve("a").label == "a@2"


def test_a_fallback_passes_over_a_mixture_whose_members_mix_no_more(
    registry: AdapterRegistry, router: Router, add: Add, tmp_path: Path
) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes)
    routes.put("both", mixture_of({"a": 0.5, "b": 0.5}))
    routes.put("safe", '{"kind": "fallback", "targets": ["both", "a"]}')
    assert len(router.resolve("safe").members) == 2
    add("b", "e", primitives={"kv_prefix": 1}, virtual_tokens=5)
    with pytest.raises(InvalidAdapter):
        router.resolve("both")
    assert router.resolve("safe").label == "a@2"


def test_what_a_request_may_name_is_known_without_asking_a_policy(
    registry: AdapterRegistry, router: Router, tmp_path: Path
) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes)
    routes.put("r", '{"kind": "alias", "target": "b"}')
    registry.delete("b")
    assert all(map(router.is_known, (None, "default", "org/demo", "a", "a@1", "r")))
    assert not any(map(router.is_known, ("b", "a@9", "r@1", "x y")))


def test_sums_of_sums_have_a_most_of_members(registry: AdapterRegistry, facts: AdapterFacts, tmp_path: Path) -> None:
    routes = RouteStore(registry, "org/demo", targets_of, tmp_path / "routes")
    router = Router(registry, "org/demo", routes)
    for number in range(9):
        registry.add(f"c{number}", f"{number}" * 64, facts)
    for name, numbers in (("low", range(5)), ("high", range(4, 9))):
        routes.put(name, mixture_of({f"c{number}": 0.5 for number in numbers}))
    routes.put("all", mixture_of({"low": 1, "high": 2}))
    with pytest.raises(InvalidAdapter, match="9 adapters would answer together, and 8 can"):
        router.resolve("all")
    routes.put("high", mixture_of({f"c{number}": 0.5 for number in range(4, 8)}))
    resolved = router.resolve("all")
    assert {member.ref.name: member.weight for member in resolved.members} == {
        **{f"c{number}": 0.5 for number in range(4)}, "c4": 1.5, **{f"c{number}": 1.0 for number in range(5, 8)},
    }  # fmt: skip
    assert [hop.route for hop in resolved.hops] == ["all", "low", "high"]


def mixture_of(weights: dict[str, float]) -> str:
    members = [{"name": name, "weight": weight} for name, weight in weights.items()]
    return json.dumps({"kind": "mixture", "adapters": members})
