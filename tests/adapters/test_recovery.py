"""A start on a damaged state folder: every whole adapter is served again, and nothing is deleted."""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from peftserve.adapters.errors import StateUnusable
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.names import Reference
from peftserve.adapters.recovery import UNFINISHED, Recovery, open_registry
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.routing.policies import targets_of
from peftserve.adapters.routing.stored import FOLDER as ROUTES
from peftserve.adapters.routing.stored import RouteStore
from peftserve.adapters.store import AdapterStore
from peftserve.adapters.stored_settings import FOLDER as SETTINGS
from peftserve.adapters.stored_settings import SettingsReader, SettingsStore

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4, num_tasks=3)


class Opened(NamedTuple):
    store: AdapterStore
    registry: AdapterRegistry
    recovery: Recovery

    def all(self) -> list[AdapterRecord]:
        names = [record.name for record in self.registry.page()]
        return [record for name in names for record in self.registry.versions(name)]


@contextmanager
def opened(root: Path, *, thorough: bool = False) -> Iterator[Opened]:
    with closing(AdapterStore(root)) as store, open_registry(root, store, thorough=thorough) as (registry, recovery):
        yield Opened(store, registry, recovery)
        registry.check_integrity()


def add(state: Opened, name: str, content: str) -> AdapterRecord:
    staged = state.store.stage(1 << 20)
    for file_name in (CONFIG, WEIGHTS):
        with staged.open(file_name) as file:
            file.write(content.encode())
    state.registry.mark_disposable(staged.digest)
    return state.registry.add(name, state.store.commit(staged), FACTS)


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[AdapterRecord]]:
    """A state folder as a server leaves it: two names of one content, several versions, the newest of one deleted."""
    root = tmp_path_factory.mktemp("state")
    with opened(root) as state:
        for name, content in (("a", "x"), ("a", "y"), ("b", "x"), ("c", "z"), ("c", "gone"), ("d", "d gone")):
            add(state, name, content)
        for name, version in (("c", 2), ("d", None)):
            for ref in state.registry.delete(name, version):
                state.store.remove(ref.digest)
                state.registry.unmark_disposable(ref.digest)
        state.registry.set_default("a@1")
        return root, state.all()


@pytest.fixture
def root(filled: tuple[Path, list[AdapterRecord]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(filled[0], tmp_path / "state"))


@pytest.fixture
def records(filled: tuple[Path, list[AdapterRecord]]) -> list[AdapterRecord]:
    return filled[1]


def missing(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    os.truncate(file, 0)


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def junk(file: Path) -> None:
    file.write_bytes(os.urandom(20_000))


def zeroed_pages(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[4096 : 3 * 4096] = bytes(2 * 4096)
    file.write_bytes(content)


def without_its_file_but_with_its_log(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("DELETE FROM versions WHERE name = 'a'")
        log = file.with_name(NAME + "-wal").read_bytes() if file.with_name(NAME + "-wal").exists() else b"log"
    file.unlink()
    file.with_name(NAME + "-wal").write_bytes(log)


def without_tables(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("DROP TABLE versions")


def with_tables_of_no_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 0")


DAMAGES = (
    *(missing, empty, truncated, junk, zeroed_pages, without_its_file_but_with_its_log, without_tables),
    with_tables_of_no_version,
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_lost_registry_is_made_again(
    damage: Callable[[Path], None], root: Path, records: list[AdapterRecord]
) -> None:
    damage(root / NAME)
    with opened(root) as state:
        assert state.all() == records
        assert all(state.store.is_whole(record.digest) for record in records)
        assert state.registry.get_default() == Reference("a", 1)
        assert any("served again" in sentence for sentence in state.recovery.findings)
        assert damage is missing or any("made anew" in sentence for sentence in state.recovery.findings)
        assert [add(state, name, "new").version for name in "acd"] == [3, 3, 2], "no number is used twice"
    assert damage is missing or list((root / "lost+found").rglob(f"{NAME}*"))
    with opened(root) as state:
        assert state.recovery.findings == [], "mended once and for all"


def test_a_start_that_was_cut_off_is_begun_again(root: Path, records: list[AdapterRecord]) -> None:
    """A registry that was made anew, and nothing brought back to it yet: what lies beside it is no deletion's rest."""
    with opened(root) as state:
        RouteStore(state.registry, "demo", targets_of, root / ROUTES).put("r", '{"kind": "alias", "target": "a"}')
        SettingsStore(state.registry, root / SETTINGS).patch("a", {"tags": ["kept"]})
    missing(root / NAME)
    (root / UNFINISHED).touch()
    AdapterRegistry(root / NAME).close()
    with opened(root) as state:
        assert state.all() == records
        assert state.registry.get_default() == Reference("a", 1)
        assert [route.name for route in RouteStore(state.registry, "demo", targets_of, root / ROUTES).page()] == ["r"]
        assert SettingsReader(state.registry).of(["a"])["a"].settings.tags == ("kept",)
        assert not (root / UNFINISHED).exists()
    empty(root / NAME)
    (root / UNFINISHED).touch()
    with opened(root) as state:
        assert state.all() == records
    assert not (root / "lost+found").exists(), "what a kill left of a new registry is nothing to look through"


def test_marks_of_versions_that_are_there_go(root: Path) -> None:
    (root / "versions" / "a@2.gone").touch()
    with opened(root):
        assert not (root / "versions" / "a@2.gone").exists()


BAD_ROWS = {
    "facts that are no JSON": "facts = '{'",
    "facts of another shape": "facts = '{\"method\": 3}'",
    "no facts": "facts = ''",
    "a digest that is none": "digest = 'rotten'",
    "bytes that are no text": "digest = CAST(x'ff00fe' AS TEXT)",
    "a digest of bytes": "digest = x'00'",
    "a time that is none": "created = 'yesterday'",
    "no time": "created = 9e999",
    "a version that is none": "version = 'x'",
    "a version below 1": "version = -4",
    "a name that is none": "name = '../x'",
    "an empty name": "name = ''",
}


@pytest.mark.parametrize("change", BAD_ROWS.values(), ids=list(BAD_ROWS))
def test_one_bad_row_keeps_no_other_from_being_served(change: str, root: Path, records: list[AdapterRecord]) -> None:
    with closing(sqlite3.connect(root / NAME)) as db, db:
        assert db.execute(f"UPDATE versions SET {change} WHERE name = 'a' AND version = 2").rowcount == 1
    with opened(root) as state:
        assert state.all() == records, "the bad one is served from its record"
        assert "made no sense" in state.recovery.findings[0]
    assert len(list((root / "lost+found").rglob("row.json"))) == 1


def test_a_bad_row_without_a_record_is_only_itself(root: Path, records: list[AdapterRecord]) -> None:
    with closing(sqlite3.connect(root / NAME)) as db, db:
        db.execute("UPDATE versions SET facts = 'x' WHERE name = 'c'")
    (root / "versions" / "c@1.json").unlink()
    with opened(root) as state:
        assert state.all() == records[:3]
        assert len(state.recovery.findings) == 2, "the row, and the files that no version has now"
    assert len(list((root / "lost+found").rglob(WEIGHTS))) == 1


@pytest.mark.parametrize("statement", ["UPDATE names SET last_version = 'x'", "DELETE FROM names"])
def test_counters_are_mended(statement: str, root: Path, records: list[AdapterRecord]) -> None:
    with closing(sqlite3.connect(root / NAME)) as db, db:
        db.execute(statement)
    with opened(root) as state:
        assert state.all() == records
        assert [add(state, name, "new").version for name in "acd"] == [3, 3, 2]


@pytest.mark.parametrize("values", ["'gone', NULL", "'a', 9", "x'00', NULL", "'a', 'x'"])
def test_a_default_that_is_none_goes(values: str, root: Path, records: list[AdapterRecord]) -> None:
    with closing(sqlite3.connect(root / NAME)) as db, db:
        db.execute(f"INSERT OR REPLACE INTO default_adapter VALUES (1, {values})")
    with opened(root) as state:
        assert state.all() == records
        assert state.registry.get_default() is None


def test_files_that_nobody_can_place_are_kept(root: Path, records: list[AdapterRecord]) -> None:
    (root / "adapters" / ("f" * 64)).mkdir()
    (root / "adapters" / ("f" * 64) / WEIGHTS).write_text("precious")
    (root / "adapters" / "README").write_text("me too")
    with opened(root) as state:
        assert state.all() == records
        assert len(state.recovery.findings) == 2
    assert {path.read_text() for path in (root / "lost+found").rglob("*") if path.is_file()} == {"precious", "me too"}


def test_files_of_unfinished_uploads_and_deletions_are_deleted(root: Path, records: list[AdapterRecord]) -> None:
    with opened(root) as state:
        digest = add(state, "e", "deleted").digest
        state.registry.delete("e")
        staged = state.store.stage(1 << 20)
        for name in (CONFIG, WEIGHTS):
            with staged.open(name) as file:
                file.write(b"killed")
        state.registry.mark_disposable(staged.digest)
        state.store.commit(staged)
        assert state.store.has(digest)
        assert state.store.has(staged.digest)
    with opened(root) as state:
        assert state.all() == records
        assert set(state.store.digests()) == {record.digest for record in records}
        assert state.recovery.findings == []
        assert state.registry.disposable() == set()


def test_an_announced_upload_of_what_is_there_deletes_nothing(root: Path, records: list[AdapterRecord]) -> None:
    with opened(root) as state:
        state.registry.mark_disposable(records[0].digest)
    with opened(root) as state:
        assert state.store.has(records[0].digest)
        assert state.registry.disposable() == set()


def test_versions_whose_files_are_gone_are_told(root: Path, records: list[AdapterRecord]) -> None:
    shutil.rmtree(root / "adapters" / records[1].digest)
    with opened(root) as state:
        assert state.recovery.lost == [records[1].ref]
        assert state.all() == records


def test_a_folder_of_an_older_release(root: Path, records: list[AdapterRecord]) -> None:
    """It has no records, and its registry no table of disposable files."""
    shutil.rmtree(root / "versions")
    with closing(sqlite3.connect(root / NAME)) as db, db:
        for table in ("disposable", "documents", "route_targets", "deleted", "damaged"):
            db.execute(f"DROP TABLE {table}")
        for column in ("origin", "owner"):
            db.execute(f"ALTER TABLE versions DROP COLUMN {column}")
        db.execute("PRAGMA user_version = 1")
    with opened(root) as state:
        assert state.all() == records
        assert state.recovery.findings == []
    missing(root / NAME)
    with opened(root) as state:
        assert state.all() == records


def test_what_a_damaged_file_still_gives_is_used_where_there_is_no_record(
    root: Path, records: list[AdapterRecord]
) -> None:
    shutil.rmtree(root / "versions")
    without_default = root / NAME
    with closing(sqlite3.connect(without_default)) as db, db:
        db.execute("DROP TABLE default_adapter")
    with opened(root) as state:
        assert state.all() == records


def test_damaged_records_do_no_harm(root: Path, records: list[AdapterRecord]) -> None:
    folder = root / "versions"
    (folder / "a@1.json").write_text("rotten")
    (folder / "b@1.json").write_bytes((folder / "a@2.json").read_bytes())
    (folder / "strange").write_text("x")
    (folder / ".half").write_text("x")
    (folder / "default.json").write_text("{}")
    with opened(root) as state:
        assert state.all() == records, "the registry needs none of them"
    missing(root / NAME)
    with opened(root) as state:
        assert [str(record.ref) for record in state.all()] == ["a@2", "c@1"]
        assert any("made no sense" in sentence for sentence in state.recovery.findings)
    (lost,) = (root / "lost+found").rglob(WEIGHTS)
    assert lost.parent.name == records[0].digest, "the content of a@1 and b@1"


def test_a_repair_mends_damaged_records_in_time(root: Path, records: list[AdapterRecord]) -> None:
    (root / "versions" / "a@1.json").write_text("rotten")
    with opened(root, thorough=True) as state:
        assert state.recovery.findings == []
    missing(root / NAME)
    with opened(root) as state:
        assert state.all() == records


def test_a_newer_release_s_registry_is_left_alone(root: Path) -> None:
    with closing(sqlite3.connect(root / NAME)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StateUnusable, match="another release"), opened(root):
        pass
    assert (root / NAME).exists()


def test_a_registry_that_cannot_be_opened_is_left_alone(root: Path) -> None:
    (root / NAME).unlink()
    (root / NAME).mkdir()
    with pytest.raises(StateUnusable, match="cannot be read"), opened(root):
        pass
    assert (root / NAME).is_dir()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=12),
    cut=st.none() | st.floats(0, 1),
)
def test_whatever_happens_to_the_file(
    flips: list[tuple[float, int]],
    cut: float | None,
    filled: tuple[Path, list[AdapterRecord]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Bytes of the registry are changed, or its end is cut off: every adapter is served again."""
    root, records = filled
    copy = tmp_path_factory.mktemp("fuzz") / "state"
    shutil.copytree(root, copy)
    content = bytearray((copy / NAME).read_bytes())
    for place, mask in flips:
        if not 60 <= int(place * len(content)) < 64:  # where the version of the schema is: it may be a newer release's
            content[int(place * len(content))] ^= mask
    (copy / NAME).write_bytes(content[: len(content) if cut is None else int(cut * len(content))])
    with opened(copy) as state:
        assert [record.ref for record in state.all()] == [record.ref for record in records]
        assert all(state.store.is_whole(record.digest) for record in records)
    with opened(copy, thorough=True) as state:
        assert state.all() == records
    shutil.rmtree(copy.parent)


def test_a_row_that_is_wrong_is_mended_by_its_record(root: Path, records: list[AdapterRecord]) -> None:
    with closing(sqlite3.connect(root / NAME)) as db, db:
        db.execute("UPDATE versions SET digest = ? WHERE name = 'c'", ("0" * 64,))
    with opened(root) as state:
        assert state.all() == records
        assert state.recovery.lost == []
    with closing(sqlite3.connect(root / NAME)) as db, db:
        db.execute("UPDATE versions SET facts = replace(facts, '100', '900')")
    with opened(root, thorough=True) as state:
        assert state.all() == records
        assert "mended" in state.recovery.findings[0]
