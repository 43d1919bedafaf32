import os
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from peftserve.adapters import maintenance
from peftserve.adapters.errors import AdapterConflict, StateUnusable
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.maintenance import back_up, check, repair
from peftserve.adapters.names import Reference
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.store import AdapterStore

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)


def add(store: AdapterStore, registry: AdapterRegistry, name: str, content: str) -> AdapterRecord:
    staged = store.stage(1 << 20)
    for file_name in (CONFIG, WEIGHTS):
        with staged.open(file_name) as file:
            file.write(content.encode())
    registry.mark_disposable(staged.digest)
    return registry.add(name, store.commit(staged), FACTS)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "state"
    with closing(AdapterStore(root)) as store, open_registry(root, store) as (registry, _):
        for name, content in (("a", "x"), ("a", "y"), ("b", "x"), ("c", "z")):
            add(store, registry, name, content)
        registry.set_default("b")
        (root / "base.json").write_text("{}")
    return root


def rot(root: Path, content: str) -> str:
    """Flip a bit of the adapter with this content; returns its digest."""
    (file,) = [f for f in (root / "adapters").rglob(WEIGHTS) if f.read_text() == content]
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]))
    return file.parent.name


def refs(found: list[object]) -> list[str]:
    return list(map(str, found))


def snapshot(root: Path) -> dict[str, bytes]:
    names = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(("-shm", "-wal")))
    return {str(path.relative_to(root)): path.read_bytes() for path in names}


def test_a_whole_folder(root: Path) -> None:
    before = snapshot(root)
    report = check(root)
    assert refs(report.whole) == ["a@1", "a@2", "b@1", "c@1"]
    assert (report.damaged, report.found) == ([], [])
    assert snapshot(root) == before
    assert repair(root).found == []


def test_an_empty_folder(tmp_path: Path) -> None:
    report = check(tmp_path)
    assert (report.whole, report.damaged, report.found) == ([], [], [])


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no registry": (lambda root: (root / NAME).unlink(), "is missing"),
    "an empty registry": (lambda root: os.truncate(root / NAME, 0), "is empty"),
    "junk for a registry": (lambda root: (root / NAME).write_bytes(b"junk" * 999), "is damaged"),
    "a record lost": (lambda root: (root / "versions" / "a@1.json").unlink(), "record of a@1"),
    "a record damaged": (lambda root: (root / "versions" / "a@1.json").write_text("{"), "record of a@1"),
    "a stranger": (lambda root: (root / "adapters" / "x").mkdir(), "files in adapters/x"),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=list(DAMAGES))
def test_what_is_found_is_mended(damage: Damage, said: str, root: Path) -> None:
    damage(root)
    before = snapshot(root)
    assert said in check(root).found[0]
    assert snapshot(root) == before
    assert refs(repair(root).whole) == ["a@1", "a@2", "b@1", "c@1"]
    assert check(root).found == []


def test_damaged_files_are_set_aside_and_the_others_stay(root: Path) -> None:
    digest = rot(root, "x")
    report = check(root)
    assert (refs(report.damaged), refs(report.whole)) == (["a@1", "b@1"], ["a@2", "c@1"])
    report = repair(root)
    assert (refs(report.damaged), refs(report.whole)) == (["a@1", "b@1"], ["a@2", "c@1"])
    assert not (root / "adapters" / digest).exists()
    assert len(list((root / "lost+found").rglob(WEIGHTS))) == 1
    assert refs(check(root).damaged) == ["a@1", "b@1"]


def test_a_row_that_makes_no_sense(root: Path) -> None:
    with closing(AdapterRegistry(root / NAME)) as registry, registry.transaction() as db:
        db.execute("UPDATE versions SET facts = 'x' WHERE name = 'c'")
    assert "make no sense: 1" in check(root).found[0]
    assert refs(repair(root).whole) == ["a@1", "a@2", "b@1", "c@1"]


def test_no_repair_beside_a_server(root: Path) -> None:
    with closing(AdapterStore(root)), pytest.raises(AdapterConflict, match="another server"):
        repair(root)


def test_a_backup_is_a_state_folder(root: Path, tmp_path: Path) -> None:
    with closing(AdapterRegistry(root / NAME)) as registry:
        registry.delete("c")
    report = back_up(root, tmp_path / "deep" / "backup")
    assert refs(report.whole) == ["a@1", "a@2", "b@1"]
    assert check(tmp_path / "deep" / "backup").found == []
    shutil.rmtree(root)
    copy = tmp_path / "deep" / "backup"
    assert (copy / "base.json").read_text() == "{}"
    with closing(AdapterStore(copy)) as store, open_registry(copy, store) as (registry, recovery):
        assert (recovery.findings, recovery.lost) == ([], [])
        assert registry.get_default() == Reference("b")
        assert add(store, registry, "c", "new").version == 2, "numbers go on where they were"
        store.check_integrity()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["backup"]


def test_what_a_backup_does_with_damage(root: Path, tmp_path: Path) -> None:
    rot(root, "x")
    report = back_up(root, tmp_path / "backup")
    assert (refs(report.damaged), refs(report.whole)) == (["a@1", "b@1"], ["a@2", "c@1"])
    assert len(list((tmp_path / "backup" / "adapters").iterdir())) == 2
    assert refs(check(tmp_path / "backup").damaged) == ["a@1", "b@1"]
    (root / NAME).write_bytes(b"junk" * 999)
    with pytest.raises(StateUnusable, match="repair"):
        back_up(root, tmp_path / "another")
    with pytest.raises(StateUnusable, match="already"):
        back_up(root, tmp_path / "backup")


def test_a_backup_that_fails_leaves_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(maintenance.os, "sync", fail)
    with pytest.raises(OSError, match="No space"):
        back_up(root, tmp_path / "backup")
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_beside_a_server_that_adds_and_deletes(root: Path, tmp_path: Path) -> None:
    """Neither check nor backup finds fault with what goes on, and every backup is a whole folder."""
    stop = threading.Event()

    def serve() -> None:
        with closing(AdapterStore(root)) as store, open_registry(root, store) as (registry, _):
            while not stop.is_set():
                digest = add(store, registry, "busy", f"content {len(os.listdir(root / 'versions'))}").digest
                registry.delete("busy")
                store.remove(digest)
                registry.unmark_disposable(digest)

    server = threading.Thread(target=serve)
    server.start()
    try:
        for i in range(10):
            report = check(root)
            assert (report.damaged, report.found) == ([], [])
            report = back_up(root, tmp_path / str(i))
            assert (report.damaged, report.found) == ([], [])
            copied = check(tmp_path / str(i))
            assert (copied.damaged, copied.found) == ([], [])
            assert {"a@1", "a@2", "b@1", "c@1"} <= set(refs(copied.whole)), "and perhaps the one that came and went"
    finally:
        stop.set()
        server.join()
