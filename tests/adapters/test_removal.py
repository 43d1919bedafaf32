"""Deletions with a way back: over restarts, kills in between, and the end of their time."""

import errno
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from peftserve.adapters.errors import AdapterConflict, AdapterNotFound, QuotaExceeded
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.keeping import ALL, Keeping
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.maintenance import check
from peftserve.adapters.names import Reference
from peftserve.adapters.ownership import Actor
from peftserve.adapters.quotas import Quota
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.removal import Removal
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore

Upload = Callable[..., StagedUpload]


class World:
    """A library whose engine notes what it releases."""

    def __init__(self, store: AdapterStore, registry: AdapterRegistry, facts: AdapterFacts, keeping: Keeping) -> None:
        self.released: list[str] = []
        self._facts = facts
        self.library = AdapterLibrary(
            store, registry, Leases(), inspect=self.inspect, release=self.release, keeping=keeping
        )

    async def inspect(self, digest: str, path: Path, tenant: str) -> AdapterFacts:
        return self._facts

    async def release(self, digest: str) -> None:
        self.released.append(digest)


async def test_what_is_kept_outlives_restarts_and_goes_when_its_time_is_over(
    store: AdapterStore, upload: Upload, facts: AdapterFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, kept = tmp_path / "state", Keeping(deleted=60.0)
    with open_registry(root, store) as (registry, _):
        world = World(store, registry, facts, kept)
        first = await world.library.add(upload("x"), "a", settings={"tags": ["t"]})
        second = await world.library.add(upload("y"), "a")
        await world.library.delete("a", 1)
        await world.library.settled()
        assert world.released == [first.digest], "memory comes back at once"
        assert store.is_whole(first.digest)
        Removal(registry, world.library.settings, kept).remove(Reference("a"), True, False, None)
        # Killed here: nobody has collected anything.
    assert check(root).found == []
    with open_registry(root, store) as (registry, recovery):
        assert recovery.findings == []
        assert {first.digest, second.digest} == registry.restorable() == set(store.digests())
        world = World(store, registry, facts, kept)
        third = await world.library.add(upload("z"), "a")
        assert third.version == 3
        assert world.library.settings.of(["a"]) == {}, "a new name has none of the settings of the one before"
        assert [str(record.ref) for record in await world.library.restore("a")] == ["a@1", "a@2"]
        assert registry.get("a", 1) == first
        assert registry.get("a") == third
        with pytest.raises(AdapterNotFound, match="nothing deleted"):
            await world.library.restore("a")
        await world.library.delete("a", 2)
        await world.library.settled()
        monkeypatch.setattr(time, "time", lambda: third.created + 3600)
        with pytest.raises(AdapterNotFound):
            await world.library.restore("a", 2)
        await world.library.purge_overdue()
        await world.library.settled()
        assert set(store.digests()) == {first.digest, third.digest}
        registry.check_integrity()


async def test_content_that_another_version_has_stays(
    store: AdapterStore, upload: Upload, facts: AdapterFacts, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "state", store) as (registry, _):
        world = World(store, registry, facts, Keeping(deleted=60.0))
        digest = (await world.library.add(upload("x"), "a")).digest
        await world.library.delete("a")
        await world.library.add(upload("x"), "b")
        await world.library.delete("a", purge=True)
        await world.library.settled()
        assert store.is_whole(digest)
        await world.library.delete("b")
        assert [record.name for record in await world.library.restore("b")] == ["b"]
        await world.library.delete("b", purge=True)
        await world.library.settled()
        assert list(store.digests()) == []
        assert registry.disposable() == set()


async def test_a_restore_is_refused_where_the_name_is_a_routes_or_the_quota_is_used(
    store: AdapterStore, upload: Upload, facts: AdapterFacts, tmp_path: Path
) -> None:
    with open_registry(tmp_path / "state", store) as (registry, _):
        world = World(store, registry, facts, Keeping(deleted=60.0))
        mine = world.library.acting_for(Actor("me", quota=Quota(max_adapters=1)))
        await mine.add(upload("x"), "a")
        await mine.delete("a")
        await mine.add(upload("y"), "b")
        with pytest.raises(QuotaExceeded, match="2 adapters"):
            await mine.restore("a")
        await mine.delete("b", purge=True)
        with registry.transaction() as db:
            db.execute("INSERT INTO documents VALUES ('route', 'a', 1, 0, '{}', '')")
        with pytest.raises(AdapterConflict, match="route"):
            await world.library.restore("a")
        assert len(registry.restorable()) == 1, "and nothing has changed"
        await world.library.settled()


async def test_a_deletion_stands_where_only_the_settings_could_not_be_deleted(
    store: AdapterStore, upload: Upload, facts: AdapterFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise OSError(errno.EIO, "the disk fails")

    with open_registry(tmp_path / "state", store) as (registry, _):
        library = World(store, registry, facts, ALL).library
        await library.add(upload("x"), "a", settings={"tags": ["x"]})
        monkeypatch.setattr(library.settings, "forget", fail)
        await library.delete("a")
        await library.settled()
        assert [*store.digests(), *registry.refs()] == []
