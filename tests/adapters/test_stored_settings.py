"""Settings in the registry: with a start in between, with a registry that is lost, and what ends by its time."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peftserve.adapters.errors import AdapterNotFound, InvalidAdapter
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.settings import Settings
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore
from peftserve.adapters.stored_settings import NOTHING_SET, SettingsStore

Upload = Callable[..., StagedUpload]


def library_of(store: AdapterStore, registry: AdapterRegistry, facts: AdapterFacts) -> AdapterLibrary:
    async def inspect(digest: str, path: Path, tenant: str) -> AdapterFacts:
        return facts

    async def release(digest: str) -> None:
        pass

    return AdapterLibrary(store, registry, Leases(), inspect=inspect, release=release)


async def test_a_lost_registry_gets_its_settings_back(
    store: AdapterStore, upload: Upload, facts: AdapterFacts, tmp_path: Path
) -> None:
    root = tmp_path / "state"
    with open_registry(root, store) as (registry, _):
        library = library_of(store, registry, facts)
        await library.add(upload("x"), "a", settings={"tags": ["one"]})
        await library.add(upload("y"), "b", settings={"tags": ["two"]})
        await library.set("a", {"tags": ["three"], "pinned": True})
        await library.delete("b")
        await library.settled()
        assert [path.name for path in (root / "settings").iterdir()] == ["a@2.json"]
    with open_registry(root, store) as (registry, recovery):
        assert recovery.findings == []
        assert SettingsStore(registry, root / "settings").of(["a", "b"])["a"].settings.tags == ("three",)
    (root / "registry.sqlite").write_bytes(b"rotten" * 1000)
    with open_registry(root, store) as (registry, _):
        settings = SettingsStore(registry, root / "settings")
        assert settings.of(["a", "b"]) == {"a": (Settings(pinned=True, tags=("three",)), None)}
        assert settings.pinned() == [registry.get("a").digest]
        with registry.transaction() as db:
            db.execute("UPDATE documents SET body = '[1]'")
    with open_registry(root, store) as (registry, _):
        assert SettingsStore(registry, root / "settings").of(["a"]) == {}
        registry.check_integrity()


def test_a_refused_change_changes_nothing(registry: AdapterRegistry, facts: AdapterFacts, tmp_path: Path) -> None:
    settings = SettingsStore(registry, tmp_path / "settings")
    with pytest.raises(AdapterNotFound):
        settings.patch("a", {"tags": ["x"]})
    registry.add("a", "a" * 64, facts)
    settings.patch("a", {"tags": ["x"]})
    with pytest.raises(InvalidAdapter):
        settings.patch("a", {"ttl": -1})
    assert settings.of(["a"])["a"].settings == Settings(tags=("x",))
    assert settings.patch("a", {"tags": None}) == NOTHING_SET
    assert list((tmp_path / "settings").iterdir()) == []


def test_the_time_of_a_name_begins_again_with_an_upload_and_a_change(
    registry: AdapterRegistry, facts: AdapterFacts, tmp_path: Path
) -> None:
    settings = SettingsStore(registry, tmp_path / "settings")
    assert settings.next_end(0) is None
    registry.add("a", "a" * 64, facts)
    before = time.time()
    first = settings.patch("a", {"ttl": 100.0}).ends
    assert first is not None
    assert before + 100 <= first <= time.time() + 100
    assert settings.next_end(0) == first
    registry.add("a", "b" * 64, facts)
    second = settings.next_end(0)
    assert second is not None
    assert second > first
    assert settings.expired(second - 0.001) == []
    assert settings.expired(second) == ["a"]
    third = settings.patch("a", {"tags": ["x"]}).ends
    assert third is not None
    assert third > second
    registry.delete("a")
    assert settings.expired(third + 1) == [], "a name without versions has no end"


def test_versions_that_routes_and_the_default_name_stay_pinned_too(
    registry: AdapterRegistry, facts: AdapterFacts, tmp_path: Path
) -> None:
    settings = SettingsStore(registry, tmp_path / "settings")
    for digest in "abcd":
        registry.add("x", digest * 64, facts)
    registry.add("y", "e" * 64, facts)
    for name in ("y", "x"):
        settings.patch(name, {"pinned": True})
    assert settings.pinned() == ["e" * 64, "d" * 64]
    registry.set_default("x@2")
    with registry.transaction() as db:
        db.execute("INSERT INTO route_targets VALUES ('x', 1, 'r')")
    assert settings.pinned() == ["e" * 64, "d" * 64, "b" * 64, "a" * 64]
