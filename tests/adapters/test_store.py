import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from peftserve.adapters import store as store_module
from peftserve.adapters.errors import AdapterConflict, InvalidAdapter, StoreFull
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.store import AdapterStore

Upload = Callable[..., StagedUpload]


def staging_of(store: AdapterStore) -> list[str]:
    return os.listdir(store.adapters.parent / "staging")


def test_commit_and_remove(store: AdapterStore, upload: Upload) -> None:
    staged = upload("a")
    digest = store.commit(staged)
    assert digest == staged.digest
    assert sorted(os.listdir(store.path(digest))) == [CONFIG, WEIGHTS]
    assert store.path(digest).stat().st_mode & 0o777 == 0o700
    assert store.has(digest)
    assert store.is_whole(digest)
    store.check_integrity()
    store.remove(digest)
    store.remove(digest)
    assert not store.has(digest)
    assert staging_of(store) == os.listdir(store.adapters) == []


def test_the_same_content_is_stored_once(store: AdapterStore, upload: Upload) -> None:
    digest = store.commit(upload("a"))
    inode = store.path(digest).stat().st_ino
    assert store.commit(upload("a")) == digest
    assert store.path(digest).stat().st_ino == inode
    assert staging_of(store) == []


def test_a_damaged_folder_is_found_and_mended_by_the_next_upload(store: AdapterStore, upload: Upload) -> None:
    digest = store.commit(upload("a"))
    (store.path(digest) / WEIGHTS).write_bytes(b"rotten")
    with pytest.raises(RuntimeError, match=digest):
        store.check_integrity()
    store.commit(upload("a"))
    store.check_integrity()


def test_an_upload_that_is_not_committed_leaves_nothing(store: AdapterStore, upload: Upload) -> None:
    with upload("a"):
        assert len(staging_of(store)) == 1
    assert staging_of(store) == []


def test_incomplete_uploads_are_not_committed(store: AdapterStore) -> None:
    with store.stage(100) as staged, pytest.raises(InvalidAdapter, match="missing"):
        store.commit(staged)
    assert os.listdir(store.adapters) == []


@pytest.mark.parametrize("digest", ["", "..", "x" * 64, "A" * 64, "../" + "a" * 61])
def test_paths_of_what_is_no_digest(store: AdapterStore, digest: str) -> None:
    with pytest.raises(InvalidAdapter):
        store.path(digest)


def test_strangers_are_set_aside_and_no_link_is_followed(store: AdapterStore, upload: Upload, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    kept, orphan = store.commit(upload("kept")), store.commit(upload("orphan"))
    (store.adapters / "stray").mkdir()
    (store.adapters / ("b" * 64)).symlink_to(outside)
    assert not store.has("b" * 64)
    strangers = store.unknown_folders({kept, "b" * 64})
    assert {path.name for path in strangers} == {orphan, "stray", "b" * 64}
    places = [store.adapters.parent / store.quarantine(path) for path in strangers]
    assert os.listdir(store.adapters) == [kept]
    assert all(os.path.lexists(place) for place in places)
    assert (outside / "precious").exists()
    store.check_integrity()


def test_what_is_lost_has_a_place_where_lost_and_found_is_the_file_systems(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def refuse(path: Path, *args: object, **options: object) -> None:
        if path.parent.name == "lost+found":
            raise PermissionError(errno.EACCES, "Permission denied")
        make(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", refuse)
    place = store.quarantine_text("row.json", "{}")
    assert place.startswith("lost-and-found/")
    assert (store.adapters.parent / place).read_text() == "{}"


def test_what_is_set_aside_has_its_new_name_on_the_disk_before_it_loses_the_old_one(
    store: AdapterStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    stranger = store.adapters / "stranger"
    stranger.touch()
    monkeypatch.setattr(store_module, "fsync_folder", synced.append)
    place = store.adapters.parent / store.quarantine(stranger)
    assert synced[-2:] == [place.parent, store.adapters]


def test_a_start_clears_what_was_staged(store: AdapterStore, upload: Upload, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    upload("staged")
    (store.adapters.parent / "staging" / "link").symlink_to(tmp_path)
    (store.adapters.parent / "staging" / "file").write_text("x")
    store.clear_staging()
    assert staging_of(store) == []
    assert (tmp_path / "precious").exists()


def test_a_full_disk_at_the_commit(store: AdapterStore, upload: Upload, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with upload("a") as staged:
        monkeypatch.setattr(store_module.os, "rename", fail)
        with pytest.raises(StoreFull):
            store.commit(staged)
    monkeypatch.undo()
    assert staging_of(store) == os.listdir(store.adapters) == []


def test_one_server_per_folder(store: AdapterStore) -> None:
    with pytest.raises(AdapterConflict, match="another server"):
        AdapterStore(store.adapters.parent)


def test_links_in_place_of_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "adapters").symlink_to(tmp_path)
    with pytest.raises(AdapterConflict, match="symbolic link"):
        AdapterStore(tmp_path / "state")


KILLED = """
import itertools, sys
from pathlib import Path
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.recovery import open_registry
from peftserve.adapters.store import AdapterStore

state = Path(sys.argv[1])
store = AdapterStore(state)
opened = open_registry(state, store)
registry, _ = opened.__enter__()
facts = AdapterFacts("LORA", 8, 1, {}, 1, 2)
for i in itertools.count():
    with store.stage(1 << 20) as staged:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            with staged.open(name) as file:
                for _ in range(4):
                    file.write(f"{sys.argv[2]} {i} ".encode() * 1000)
        registry.mark_disposable(staged.digest)
        digest = store.commit(staged)
    version = registry.add("a", digest, facts).version
    print("added", version, digest, flush=True)
    if i % 2:
        registry.set_default(f"a@{version}")
        print("default", version, digest, flush=True)
        registry.delete("a", version - 1)
        print("deleted", version - 1, digest, flush=True)
        store.remove(digest_before)
        registry.unmark_disposable(digest_before)
    digest_before = digest
"""


def test_killed_at_any_point_everything_acknowledged_is_there_and_whole(tmp_path: Path) -> None:
    """Versions that were acknowledged and never asked to be deleted are whole; the rest is whole or absent."""
    added: dict[int, str] = {}
    asked, default = set[int](), 0
    draw = random.Random(7)
    for run in range(12):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path), str(run)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        first = process.stdout.readline()  # from here on it is at work
        time.sleep(draw.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        for line in [first, *process.stdout.read().splitlines()]:
            kind, version, digest = line.decode().split()
            if kind == "added":
                added[int(version)] = digest
            elif kind == "default":
                default = int(version)
                asked.add(default - 1)
        process.stdout.close()
        process.wait()

        with closing(AdapterStore(tmp_path)) as store, open_registry(tmp_path, store) as (registry, recovery):
            registry.check_integrity()
            store.check_integrity()
            found = {record.version: record.digest for record in registry.versions("a")}
            assert all(store.is_whole(digest) for version, digest in found.items() if version not in asked)
            assert {v: d for v, d in added.items() if v not in asked}.items() <= found.items()
            assert set(store.digests()) <= set(found.values())
            assert recovery.findings == [], "a kill is no damage: what it leaves is known to be disposable"
            answer = registry.get_default()
            assert answer is None or (answer.version or 0) >= default
    assert len(added) > 12
    assert not (tmp_path / "lost+found").exists()
