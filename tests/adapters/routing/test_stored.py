"""Routes in the registry, by a random walk against a model of it."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from peftserve.adapters.errors import AdapterConflict, AdapterNotFound, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.router import Router
from peftserve.adapters.routing.policies import check_targets, targets_of
from peftserve.adapters.routing.stored import FOLDER, RouteStore
from peftserve.adapters.store import AdapterStore

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)
ROUTES = ["r", "s", "t", "u"]
ADAPTERS = ["a", "b"]
TARGETS = [*ROUTES, *ADAPTERS, "a@1", "b@2", "base", "nobody"]
FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}


def alias(target: str) -> str:
    return json.dumps({"kind": "alias", "target": target})


@pytest.fixture
def routes(registry: AdapterRegistry, tmp_path: Path) -> Iterator[RouteStore]:
    for name in ADAPTERS:
        registry.add(name, "1" * 64, FACTS)
    return RouteStore(registry, "base", targets_of, tmp_path / "routes", check_targets)


def test_a_way_has_a_most_of_routes(routes: RouteStore, registry: AdapterRegistry) -> None:
    routes.put("r0", alias("a"))
    for number in range(1, 8):
        routes.put(f"r{number}", alias(f"r{number - 1}"))
    resolved = Router(registry, "base", routes).resolve("r7")
    assert (resolved.label, len(resolved.hops)) == ("a@1", 8)
    with pytest.raises(InvalidAdapter, match="more than 8 routes"):
        routes.put("r8", alias("r7"))
    routes.put("s", alias("b"))
    with pytest.raises(InvalidAdapter, match="more than 8 routes"):
        routes.put("r0", alias("s"))  # in the middle of a way that has its most already


def test_pages_are_by_name(routes: RouteStore) -> None:
    for name in "dbca":
        routes.put(f"r{name}", alias("a"))
    assert [route.name for route in routes.page(limit=3)] == ["ra", "rb", "rc"]
    assert [route.name for route in routes.page(after="rb")] == ["rc", "rd"]


def test_a_mixture_s_members_must_mix(routes: RouteStore, registry: AdapterRegistry) -> None:
    prefix = AdapterFacts("PREFIX_TUNING", 0, 10, {"kv_prefix": 1}, 0, 1, virtual_tokens=5)
    registry.add("p", "2" * 64, prefix)
    body = {"kind": "mixture", "adapters": [{"name": "a", "weight": 1}, {"name": "p", "weight": 1}]}
    with pytest.raises(InvalidAdapter, match="p@1 has a KV prefix and cannot be mixed"):
        routes.put("r", json.dumps(body))
    assert routes.find("r") is None
    assert routes.put("r", alias("a"))[0].version == 1


class Machine(RuleBasedStateMachine):
    """Routes and adapters that come and go, in a folder that is reopened, and whose registry is lost, now and then."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.bodies: dict[str, list[str]] = {}  # route to its targets
        self.versions: dict[str, int] = {}
        self.adapters: dict[str, set[int]] = {name: set() for name in ADAPTERS}
        self.last: dict[str, int] = {}
        self.forced: set[str] = set()  # what was deleted though it was named
        self.default: str | None = None
        self.open()

    def open(self) -> None:
        self.stack = ExitStack()
        store = AdapterStore(self.root)
        self.stack.callback(store.close)
        self.registry, _ = self.stack.enter_context(open_registry(self.root, store))
        self.routes = RouteStore(self.registry, "base", targets_of, self.root / FOLDER, check_targets)

    def exists(self, target: str) -> bool:
        name, _, version = target.partition("@")
        if version:
            return int(version) in self.adapters.get(name, ())
        return target == "base" or target in self.bodies or bool(self.adapters.get(target))

    def reaches(self, start: list[str], goal: str) -> bool:
        seen, todo = set(), [*start]
        while todo:
            one = todo.pop()
            if one == goal:
                return True
            if one not in seen:
                seen.add(one)
                todo += self.bodies.get(one, [])
        return False

    def named_by(self, name: str) -> set[str]:
        return {route for route, targets in self.bodies.items() if name in {t.partition("@")[0] for t in targets}}

    @rule(name=st.sampled_from([*ROUTES, "a"]), named=st.lists(st.sampled_from(TARGETS), min_size=1, max_size=3))
    def put(self, name: str, named: list[str]) -> None:
        body = json.dumps({"kind": "fallback", "targets": named})
        bad = any(not self.exists(target) and target != name for target in named)
        if self.adapters.get(name):
            expected: type[Exception] | None = AdapterConflict
        else:
            expected = InvalidAdapter if bad or self.reaches(named, name) else None
        if expected is not None:
            with pytest.raises(expected):
                self.routes.put(name, body)
            return
        route, is_new = self.routes.put(name, body)
        assert is_new == (name not in self.bodies)
        assert route.version > self.last.get(name, 0)
        self.bodies[name], self.versions[name] = named, route.version
        self.last[name] = route.version

    @rule(name=st.sampled_from(ROUTES), force=st.booleans())
    def delete(self, name: str, force: bool) -> None:
        if name not in self.bodies:
            with pytest.raises(AdapterNotFound):
                self.routes.delete(name, force=force)
        elif self.named_by(name) and not force:
            with pytest.raises(AdapterConflict, match="is named by"):
                self.routes.delete(name)
        else:
            self.routes.delete(name, force=force)
            if self.named_by(name):
                self.forced.add(name)
            del self.bodies[name], self.versions[name]
            self.default = None if self.default == name else self.default

    @rule(name=st.sampled_from(ADAPTERS))
    def upload(self, name: str) -> None:
        if name in self.bodies:
            with pytest.raises(AdapterConflict):
                self.registry.add(name, "1" * 64, FACTS)
            return
        (self.root / "adapters" / ("1" * 64)).mkdir(exist_ok=True)
        version = self.registry.add(name, "1" * 64, FACTS).version
        assert version > self.last.get(name, 0)
        self.adapters[name].add(version)
        self.last[name] = version

    @rule(name=st.sampled_from(ADAPTERS), force=st.booleans())
    def remove(self, name: str, force: bool) -> None:
        if self.adapters[name] and not force and self.named_by(name):
            with pytest.raises(AdapterConflict, match="is named by"):
                self.registry.delete(name, force=False)
        elif self.adapters[name]:
            self.registry.delete(name, force=force)
            self.forced |= {f"{name}@{version}" for version in self.adapters[name]} | {name}
            self.adapters[name] = set()
            self.default = None if self.default == name else self.default

    @rule(name=st.sampled_from([*ROUTES, *ADAPTERS]))
    def set_default(self, name: str) -> None:
        if self.exists(name):
            self.registry.set_default(name)
            self.default = name

    @rule(is_lost=st.booleans())
    def reopen(self, is_lost: bool) -> None:
        self.stack.close()
        if is_lost:
            for file in self.root.glob("registry.sqlite*"):
                file.unlink()
            # Numbers of routes that were deleted go with it; those of adapters are kept beside it.
            self.last = {n: v for n, v in self.last.items() if n in ADAPTERS or n in self.versions}
        self.open()

    @invariant()
    def the_registry_is_as_the_model_says(self) -> None:
        if not hasattr(self, "routes"):
            return
        found: Mapping[str, Any] = {r.name: (r.version, json.loads(r.text)["targets"]) for r in self.routes.page()}
        assert found == {name: (self.versions[name], targets) for name, targets in self.bodies.items()}
        self.registry.check_integrity()
        default = self.registry.get_default()
        assert (None if default is None else default.name) == self.default
        for name, targets in self.bodies.items():
            assert not self.reaches(targets, name), "a cycle"
            assert all(self.exists(target) or target in self.forced for target in targets)
        self._each_route_answers_with_its_first_target_that_does()

    def _each_route_answers_with_its_first_target_that_does(self) -> None:
        router = Router(self.registry, "base", self.routes)
        for name in self.bodies:
            expected = self.answer_of(name)
            if expected is None:
                with pytest.raises(AdapterNotFound):
                    router.resolve(name)
            else:
                assert router.resolve(name).label == expected

    def answer_of(self, target: str) -> str | None:
        if target in self.bodies:
            return next((found for one in self.bodies[target] if (found := self.answer_of(one)) is not None), None)
        if target == "base" or not self.exists(target):
            return "base" if target == "base" else None
        return target if "@" in target else f"{target}@{max(self.adapters[target])}"

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            self.folder.cleanup()


Machine.TestCase.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
TestRoutes = Machine.TestCase
