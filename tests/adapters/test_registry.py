import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from peftserve.adapters import registry_reader
from peftserve.adapters.errors import AdapterNotFound, StateUnusable, StoreFailed, StoreFull
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import Reference, VersionRef
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_reader import AdapterRecord

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)
DIGESTS = [character * 64 for character in "abc"]
NAMES = ["sql", "json", "Sql"]


def test_versions_count_up_and_a_reopened_registry_knows_them(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    first = AdapterRegistry(path)
    before = time.time()
    assert first.add("a", DIGESTS[0], FACTS).ref == VersionRef("a", 1, DIGESTS[0])
    record = first.add("a", DIGESTS[1], FACTS)
    first.set_default("a")
    first.close()
    again = AdapterRegistry(path)
    assert again.get("a") == record
    assert record.facts == FACTS
    assert before <= record.created <= time.time()
    assert again.find("a") == record
    assert again.get_default() == Reference("a")
    assert _ref(again.find("a", 1)) == VersionRef("a", 1, DIGESTS[0])
    again.close()


def _default(registry: AdapterRegistry) -> VersionRef | None:
    reference = registry.get_default()
    return None if reference is None else _ref(registry.find(*reference))


def _ref(record: AdapterRecord | None) -> VersionRef | None:
    return record and record.ref


def test_facts_survive_and_older_rows_have_fewer(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    registry = AdapterRegistry(path)
    facts = msgspec.structs.replace(FACTS, exclusive=("DoRA",), num_tasks=3, virtual_tokens=20)
    registry.add("a", DIGESTS[0], facts)
    registry.add("b", DIGESTS[1], FACTS)
    old = '{"method":"LORA","rank":8,"num_bytes":100,"primitives":{"low_rank":2},"sites":2,"consumed":4}'
    with registry.transaction() as db:
        db.execute("UPDATE versions SET facts = ? WHERE name = 'b'", (old,))
    registry.close()
    registry = AdapterRegistry(path)
    assert [record.facts for record in registry.page()] == [facts, FACTS]
    registry.close()


def test_a_version_is_never_two_things(registry: AdapterRegistry) -> None:
    registry.add("a", DIGESTS[0], FACTS)
    registry.delete("a")
    assert registry.add("a", DIGESTS[1], FACTS).version == 2
    assert registry.find("a", 1) is None


def test_what_is_not_there(registry: AdapterRegistry) -> None:
    assert registry.find("a") is None
    assert registry.get_default() is None
    with pytest.raises(AdapterNotFound, match="there is no adapter 'a@3'"):
        registry.get("a", 3)
    with pytest.raises(AdapterNotFound, match="there is no adapter 'a'"):
        registry.delete("a")
    for text in ("a", "a@1", "", "a@x", "'; DROP TABLE versions"):
        with pytest.raises(AdapterNotFound):
            registry.set_default(text)


@pytest.mark.parametrize("version", [None, 2])
def test_a_deleted_default_leaves_none(registry: AdapterRegistry, version: int | None) -> None:
    for digest in DIGESTS:
        registry.add("a", digest, FACTS)
    registry.set_default("a@2")
    registry.delete("a", 3)
    assert _default(registry) == VersionRef("a", 2, DIGESTS[1])
    registry.delete("a", version)
    assert registry.get_default() is None
    registry.check_integrity()


def test_a_default_by_name_lasts_as_long_as_a_version_does(registry: AdapterRegistry) -> None:
    for digest in DIGESTS[:2]:
        registry.add("a", digest, FACTS)
    registry.set_default("a")
    registry.delete("a", 2)
    assert _default(registry) == VersionRef("a", 1, DIGESTS[0])
    registry.delete("a", 1)
    assert registry.get_default() is None


def test_pages(registry: AdapterRegistry) -> None:
    for name in ("b", "a", "c", "a"):
        registry.add(name, DIGESTS[0], FACTS)
    assert [str(record.ref) for record in registry.page()] == ["a@2", "b@1", "c@1"]
    assert [record.name for record in registry.page(limit=2)] == ["a", "b"]
    assert [record.name for record in registry.page(after="b")] == ["c"]
    assert [str(ref) for ref in registry.refs()] == ["a@1", "a@2", "b@1", "c@1"]
    assert registry.count() == 3


def test_a_failed_transaction_changes_nothing(registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdapterFacts, "to_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        registry.add("a", DIGESTS[0], FACTS)
    monkeypatch.undo()
    assert registry.add("a", DIGESTS[0], FACTS).version == 1


def test_a_disk_that_takes_no_writes_is_named(registry: AdapterRegistry) -> None:
    registry._writer.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreFailed, match="readonly"):
        registry.add("a", DIGESTS[0], FACTS)
    registry._writer.execute("PRAGMA query_only = OFF")
    assert registry.add("a", DIGESTS[0], FACTS).version == 1


def test_a_full_disk_is_named(registry: AdapterRegistry) -> None:
    (pages,) = registry._writer.execute("PRAGMA page_count").fetchone()
    registry._writer.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for i in range(1000):
            registry.add(f"a{i}", DIGESTS[0], FACTS)

    with pytest.raises(StoreFull, match="no room"):
        fill()
    registry._writer.execute("PRAGMA max_page_count = 1000000")
    count = registry.count()
    registry.add("a", DIGESTS[0], FACTS)
    assert registry.count() == count + 1
    registry.check_integrity()


def test_another_release_s_file(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "r.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StateUnusable, match="another release"):
        AdapterRegistry(tmp_path / "r.sqlite")


def test_integrity_check_sees_contradictions(registry: AdapterRegistry) -> None:
    registry.add("a", DIGESTS[0], FACTS)
    registry.check_integrity()
    registry._writer.execute("UPDATE versions SET version = 5")
    with pytest.raises(RuntimeError, match="a@5 is newer"):
        registry.check_integrity()


def test_threads_get_different_versions_and_readers_never_wait_for_them(registry: AdapterRegistry) -> None:
    def add() -> None:
        for _ in range(10):
            registry.add("a", DIGESTS[0], FACTS)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    registry.find("a")
    for thread in threads:
        thread.join()
    assert [record.version for record in registry.versions("a")] == list(range(1, 41))
    with registry.transaction():
        assert _ref(registry.find("a")) == VersionRef("a", 40, DIGESTS[0])


def test_ten_thousand_adapters(tmp_path: Path) -> None:
    """Start and look-up by the number of rows that SQLite touches, not by the clock."""
    path = tmp_path / "r.sqlite"
    registry = AdapterRegistry(path)
    with registry.transaction() as db:
        facts = '{"method":"LORA","rank":8,"num_bytes":1,"primitives":{},"sites":1,"consumed":2}'
        db.executemany("INSERT INTO names VALUES (?, 1)", [(f"n{i}",) for i in range(10_000)])
        rows = [(f"n{i}", 1, f"{i:064x}", 0.0, facts) for i in range(10_000)]
        db.executemany("INSERT INTO versions (name, version, digest, created, facts) VALUES (?, ?, ?, ?, ?)", rows)
    registry.set_default("n77")
    registry.close()
    registry = AdapterRegistry(path)
    for query, parameters in (
        ("SELECT * FROM versions WHERE name = ? AND version = ifnull(?, version)", ("n1", None)),
        (f"SELECT {registry_reader.IN_USE}", ("a",)),
    ):
        plan = registry._reader.execute(f"EXPLAIN QUERY PLAN {query}", parameters).fetchall()
        assert not any("SCAN v" in step[3] for step in plan), plan
    assert _ref(registry.find("n9999")) == VersionRef("n9999", 1, f"{9999:064x}")
    assert registry.count() == 10_000
    assert sum(1 for _ in registry.refs()) == 10_000
    registry.close()


class RegistryMachine(RuleBasedStateMachine):
    """The registry against dictionaries, reopened now and then."""

    versions: dict[str, dict[int, str]]
    last: dict[str, int]
    default: Reference | None

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "r.sqlite"
        self.registry = AdapterRegistry(self.path)
        self.versions, self.last, self.default = {}, {}, None

    def teardown(self) -> None:
        self.registry.close()
        self.folder.cleanup()

    @rule(name=st.sampled_from(NAMES), digest=st.sampled_from(DIGESTS))
    def add(self, name: str, digest: str) -> None:
        self.last[name] = self.last.get(name, 0) + 1
        self.versions.setdefault(name, {})[self.last[name]] = digest
        assert self.registry.add(name, digest, FACTS).version == self.last[name]

    @rule(name=st.sampled_from(NAMES), version=st.none() | st.integers(1, 5))
    def delete(self, name: str, version: int | None) -> None:
        have = self.versions.get(name, {})
        gone = {v for v in have if version in (None, v)}
        left = have.keys() - gone
        if not gone:
            with pytest.raises(AdapterNotFound):
                self.registry.delete(name, version)
        else:
            assert {ref.version for ref in self.registry.delete(name, version)} == gone
            self.versions[name] = {v: d for v, d in have.items() if v in left}
            default = self.default
            if default and default.name == name and not (left & {default.version or max(left, default=0)}):
                self.default = None

    @rule(name=st.sampled_from(NAMES), version=st.none() | st.integers(1, 5))
    def set_default(self, name: str, version: int | None) -> None:
        text = name if version is None else f"{name}@{version}"
        have = self.versions.get(name, {})
        if have and version in (None, *have):
            self.registry.set_default(text)
            self.default = Reference(name, version)
        else:
            with pytest.raises(AdapterNotFound):
                self.registry.set_default(text)

    @rule()
    def unset_default(self) -> None:
        self.registry.set_default(None)
        self.default = None

    @rule()
    def reopen(self) -> None:
        self.registry.close()
        self.registry = AdapterRegistry(self.path)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "registry"):
            return
        found: Any = {name: {r.version: r.digest for r in self.registry.versions(name)} for name in NAMES}
        assert found == {name: self.versions.get(name, {}) for name in NAMES}
        newest = {name: max(have) for name, have in self.versions.items() if have}
        assert {record.name: record.version for record in self.registry.page()} == newest
        assert self.registry.get_default() == self.default
        ref = _default(self.registry)
        wanted = self.default and (self.default.name, self.default.version or newest[self.default.name])
        assert (ref and ref[:2]) == wanted
        used = {digest for have in self.versions.values() for digest in have.values()}
        assert {digest for digest in DIGESTS if self.registry.in_use(digest)} == used
        self.registry.check_integrity()


TestRegistryMachine = RegistryMachine.TestCase
TestRegistryMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
