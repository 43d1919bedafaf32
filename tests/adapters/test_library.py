import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from peftserve.adapters import files as files_module
from peftserve.adapters.errors import AdapterConflict, AdapterNotFound, InvalidAdapter, StoreFull
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import WEIGHTS
from peftserve.adapters.leases import Leases
from peftserve.adapters.library import AdapterLibrary
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.router import Router
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore

Upload = Callable[..., StagedUpload]
RouterUpload = Upload


@dataclass
class FakeEngine:
    """Inspections wait for `gate`; `error` makes them fail."""

    facts: AdapterFacts
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    error: Exception | None = None
    inspected: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    async def inspect(self, digest: str, path: Path, tenant: str) -> AdapterFacts:
        assert (path / WEIGHTS).exists()
        self.inspected.append(digest)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.facts

    async def release(self, digest: str) -> None:
        await asyncio.sleep(0)
        self.released.append(digest)


@pytest.fixture
def engine(facts: AdapterFacts) -> FakeEngine:
    engine = FakeEngine(facts)
    engine.gate.set()
    return engine


@pytest.fixture
def leases() -> Leases:
    return Leases()


@pytest.fixture
async def library(
    store: AdapterStore, registry: AdapterRegistry, leases: Leases, engine: FakeEngine
) -> AsyncIterator[AdapterLibrary]:
    library = AdapterLibrary(
        store, registry, leases, inspect=engine.inspect, release=engine.release, reserved=frozenset({"demo"})
    )
    yield library
    await library.settled()
    for part in (store, registry, leases):
        part.check_integrity()
    assert set(store.digests()) | library.damaged.keys() == {ref.digest for ref in registry.refs()}, (
        "files without a row, or none for one"
    )
    assert os.listdir(store.adapters.parent / "staging") == []


@pytest.fixture
def router(registry: AdapterRegistry) -> Router:
    return Router(registry, "demo")


async def test_an_upload_becomes_a_version(
    library: AdapterLibrary, store: AdapterStore, registry: AdapterRegistry, upload: Upload, facts: AdapterFacts
) -> None:
    record = await library.add(upload("x"), "a")
    num_bytes = sum(path.stat().st_size for path in store.path(record.digest).iterdir())
    assert (str(record.ref), record.facts) == ("a@1", msgspec.structs.replace(facts, file_bytes=num_bytes))
    assert store.is_whole(record.digest)
    assert registry.get("a") == record
    assert (await library.add(upload("y"), "a")).version == 2


async def test_refused_uploads_leave_nothing(library: AdapterLibrary, upload: Upload, engine: FakeEngine) -> None:
    with pytest.raises(AdapterConflict, match="reserved"):
        await library.add(upload(), "demo")
    with pytest.raises(InvalidAdapter, match="not a name"):
        await library.add(upload(), "../x")
    assert engine.inspected == []
    engine.error = InvalidAdapter("the engine says no")
    with pytest.raises(InvalidAdapter, match="the engine says no"):
        await library.add(upload(), "a")


async def test_malformed_files_do_not_reach_the_engine(
    library: AdapterLibrary, store: AdapterStore, upload: Upload, engine: FakeEngine
) -> None:
    staged = upload()
    (staged.path / WEIGHTS).write_bytes(b"\x80\x04pickle")
    with pytest.raises(InvalidAdapter, match="pickle"):
        await library.add(staged, "a")
    with store.stage(100) as incomplete, pytest.raises(InvalidAdapter, match="missing"):
        await library.add(incomplete, "a")
    assert engine.inspected == []


async def test_the_experts_are_those_that_the_configuration_names(
    library: AdapterLibrary, router_upload: RouterUpload, store: AdapterStore
) -> None:
    with pytest.raises(InvalidAdapter, match="the expert b is not there"):
        await library.add(router_upload(["a", "b"], ["a"]), "routed")
    staged = router_upload(["a"], ["a", "b"])
    stored = store.path((await library.add(staged, "routed")).digest)
    assert {path.name for path in stored.iterdir() if path.is_dir()} == {"a"}
    assert all(name.startswith("b/") for name in staged.skipped)


async def test_a_broken_expert_is_named(library: AdapterLibrary, router_upload: RouterUpload) -> None:
    with pytest.raises(InvalidAdapter, match=r"^b: adapter_model.safetensors has 4 bytes"):
        await library.add(router_upload(["a", "b"], ["a", "b"], {"b": b"oops"}), "routed")


async def test_a_router_is_stored_with_its_experts(
    library: AdapterLibrary, store: AdapterStore, router_upload: RouterUpload
) -> None:
    record = await library.add(router_upload(["a", "b"], ["b", "a"]), "routed")
    assert store.is_whole(record.digest)
    expert = store.path(record.digest) / "a" / WEIGHTS
    content = expert.read_bytes()
    expert.write_bytes(content + b" ")
    assert not store.is_whole(record.digest)
    expert.write_bytes(content)
    await library.delete("routed")
    await library.settled()
    assert not store.path(record.digest).exists()


async def test_a_full_disk_leaves_nothing(
    library: AdapterLibrary, registry: AdapterRegistry, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise StoreFull("no room")

    monkeypatch.setattr(registry, "add", full)
    with pytest.raises(StoreFull):
        await library.add(upload(), "a")


async def test_content_is_shared_until_its_last_name_goes(
    library: AdapterLibrary, store: AdapterStore, upload: Upload, engine: FakeEngine
) -> None:
    digest = (await library.add(upload("x"), "a")).digest
    assert (await library.add(upload("x"), "b")).digest == digest
    await library.delete("a")
    await library.settled()
    assert store.has(digest)
    assert engine.released == []
    await library.delete("b")
    await library.settled()
    assert not store.has(digest)
    assert engine.released == [digest]


async def test_only_if_new(library: AdapterLibrary, upload: Upload) -> None:
    first = await library.add(upload("x"), "a", only_if_new=True)
    assert await library.add(upload("x"), "a", only_if_new=True) == first
    assert (await library.add(upload("y"), "a", only_if_new=True)).version == 2
    assert (await library.add(upload("x"), "a", only_if_new=True)).version == 3


async def test_running_requests_keep_a_deleted_adapter(
    library: AdapterLibrary, store: AdapterStore, router: Router, leases: Leases, upload: Upload, engine: FakeEngine
) -> None:
    digest = (await library.add(upload("x"), "a")).digest
    resolved = router.resolve("a")
    leases.acquire(resolved)
    assert [str(ref) for ref in await library.delete("a")] == ["a@1"]
    with pytest.raises(AdapterNotFound):
        router.resolve("a")
    await asyncio.sleep(0.01)
    assert store.has(digest)
    assert engine.released == []
    leases.release(resolved)
    await library.settled()
    assert engine.released == [digest]


async def test_content_that_comes_back_before_it_went_is_kept(
    library: AdapterLibrary, store: AdapterStore, router: Router, leases: Leases, upload: Upload, engine: FakeEngine
) -> None:
    digest = (await library.add(upload("x"), "a")).digest
    resolved = router.resolve("a")
    leases.acquire(resolved)
    await library.delete("a")
    assert (await library.add(upload("x"), "a")).version == 2
    leases.release(resolved)
    await library.settled()
    assert store.is_whole(digest)
    assert engine.released == []


async def test_an_upload_during_the_deletion_of_its_content_waits_for_it(
    library: AdapterLibrary, store: AdapterStore, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = (await library.add(upload("x"), "a")).digest
    removing, go_on = threading.Event(), threading.Event()
    remove = store.remove

    def slow_remove(digest: str) -> None:
        removing.set()
        go_on.wait()
        remove(digest)

    monkeypatch.setattr(store, "remove", slow_remove)
    await library.delete("a")
    await asyncio.to_thread(removing.wait)
    adding = asyncio.create_task(library.add(upload("x"), "a"))
    await asyncio.sleep(0.02)
    assert not adding.done()
    go_on.set()
    assert (await adding).version == 2
    assert store.is_whole(digest)


@pytest.mark.parametrize("committed_first", [True, False])
async def test_a_client_that_leaves_during_the_commit_separates_nothing(
    library: AdapterLibrary,
    store: AdapterStore,
    registry: AdapterRegistry,
    upload: Upload,
    monkeypatch: pytest.MonkeyPatch,
    committed_first: bool,
) -> None:
    at_work, go_on = threading.Event(), threading.Event()
    commit = store.commit

    def slow_commit(staged: StagedUpload) -> str:
        digest = commit(staged) if committed_first else ""
        at_work.set()
        go_on.wait()
        return digest or commit(staged)

    async def request() -> None:
        with upload("x") as staged:
            await library.add(staged, "a")

    monkeypatch.setattr(store, "commit", slow_commit)
    adding = asyncio.create_task(request())
    await asyncio.to_thread(at_work.wait)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    go_on.set()
    await library.settled()
    assert registry.find("a") is not None


async def test_a_client_that_leaves_during_the_inspection_leaves_nothing(
    library: AdapterLibrary, registry: AdapterRegistry, upload: Upload, engine: FakeEngine
) -> None:
    engine.gate.clear()
    adding = asyncio.create_task(library.add(upload("x"), "a"))
    while not engine.inspected:
        await asyncio.sleep(0.001)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert registry.find("a") is None


async def test_an_engine_that_fails_to_release_keeps_no_files(
    library: AdapterLibrary, store: AdapterStore, upload: Upload, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(digest: str) -> None:
        raise ConnectionError("the engine is gone")

    library._release = fail
    digest = (await library.add(upload("x"), "a")).digest
    await library.delete("a")
    await library.settled()
    assert not store.has(digest)
    assert "did not release" in caplog.text


async def test_the_default(library: AdapterLibrary, router: Router, upload: Upload) -> None:
    await library.add(upload("x"), "a")
    await library.set_default("a")
    assert router.resolve(None).label == "a@1"
    await library.delete("a")
    assert router.resolve(None).weights() == {}
    assert router.resolve("default").weights() == {}


async def test_damaged_files_are_set_aside_and_the_same_upload_mends_them(
    library: AdapterLibrary, store: AdapterStore, registry: AdapterRegistry, upload: Upload
) -> None:
    record = await library.add(upload("x"), "a")
    await library.add(upload("x"), "b")
    (store.path(record.digest) / WEIGHTS).write_bytes(b"rotten")
    library.recheck(record.digest)
    await library.settled()
    assert not store.has(record.digest)
    assert "damaged" in library.damaged[record.digest]
    assert [str(ref) for ref in registry.refs()] == ["a@1", "b@1"], "requests are told why, and not that it never was"
    (set_aside,) = (store.adapters.parent / "lost+found").rglob(WEIGHTS)
    assert set_aside.read_bytes() == b"rotten"
    await library.add(upload("x"), "c")
    assert library.damaged == {}
    assert store.is_whole(record.digest)


async def test_files_that_are_whole_after_all_stay(
    library: AdapterLibrary, store: AdapterStore, upload: Upload
) -> None:
    record = await library.add(upload("x"), "a")
    library.recheck(record.digest)
    library.recheck("e" * 64)
    await library.settled()
    assert store.is_whole(record.digest)
    assert library.damaged == {}


async def test_a_disk_that_does_not_answer_is_no_damage(
    library: AdapterLibrary, store: AdapterStore, upload: Upload, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = await library.add(upload("x"), "a")
    inode = store.path(record.digest).stat().st_ino

    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(files_module.os, "open", fail)
    library.recheck(record.digest)
    await library.settled()
    monkeypatch.undo()
    assert store.path(record.digest).stat().st_ino == inode
    assert library.damaged == {}


async def test_versions_that_lost_their_files_can_be_deleted(
    library: AdapterLibrary, store: AdapterStore, registry: AdapterRegistry, upload: Upload
) -> None:
    record = await library.add(upload("x"), "a")
    store.quarantine(store.path(record.digest))
    library.recheck(record.digest)
    await library.settled()
    assert "gone" in library.damaged[record.digest]
    await library.delete("a")
    await library.settled()
    assert library.damaged == {}
    assert registry.disposable() == set()


async def test_closing_does_not_wait_for_requests(
    library: AdapterLibrary,
    router: Router,
    leases: Leases,
    registry: AdapterRegistry,
    store: AdapterStore,
    upload: Upload,
) -> None:
    await library.add(upload("x"), "a")
    leases.acquire(router.resolve("a"))
    (digest,) = store.digests()
    await library.delete("a")
    await library.close()
    assert registry.disposable() == {digest}, "the next start deletes them"
    store.remove(digest)


async def test_everything_at_once(
    library: AdapterLibrary, router: Router, leases: Leases, store: AdapterStore, upload: Upload, engine: FakeEngine
) -> None:
    """Uploads of few contents under few names, deletions, and requests: files are there for as long as one runs."""

    async def uploads(worker: int) -> None:
        for i in range(8):
            await library.add(upload(f"content {(worker + i) % 3}"), f"name{i % 2}")

    async def deletions() -> None:
        for i in range(12):
            try:
                await library.delete(f"name{i % 2}")
            except AdapterNotFound:
                await asyncio.sleep(0.001)

    async def requests(worker: int) -> None:
        for i in range(30):
            try:
                resolved = router.resolve(f"name{(worker + i) % 2}")
            except AdapterNotFound:
                await asyncio.sleep(0.001)
                continue
            leases.acquire(resolved)
            for _ in range(3):
                await asyncio.sleep(0.001)
                assert all(store.has(digest) for digest in resolved.weights())
            leases.release(resolved)

    await asyncio.gather(*(uploads(i) for i in range(3)), deletions(), *(requests(i) for i in range(4)))
