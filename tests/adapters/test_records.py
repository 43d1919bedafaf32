import errno
import logging
import sqlite3
from pathlib import Path

import pytest

from peftserve.adapters import records as records_module
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.names import Reference, VersionRef
from peftserve.adapters.records import VersionRecords
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_reader import AdapterRecord

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)
RECORD = AdapterRecord(VersionRef("a", 2, "f" * 64), 1700000000.25, FACTS)


@pytest.fixture
def records(tmp_path: Path) -> VersionRecords:
    return VersionRecords(tmp_path / "versions")


def test_a_record_comes_back_as_it_was(records: VersionRecords) -> None:
    records.write([RECORD])
    assert records.read(Reference("a", 2)) == RECORD
    assert records.read(Reference("a", 1)) is None
    assert records.listing().here == {Reference("a", 2)}


def test_every_byte_of_a_record_counts(records: VersionRecords) -> None:
    records.write([RECORD])
    path = records.path(Reference("a", 2))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert records.read(Reference("a", 2)) in (None, RECORD)


def test_the_registry_keeps_its_records(records: VersionRecords, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "r.sqlite", records)
    for digest in "abc":
        registry.add("x", digest * 64, FACTS)
    registry.set_default("x")
    assert records.read(Reference("x", 2)) == registry.get("x", 2)
    assert records.read_default() == Reference("x")
    registry.delete("x", 1)
    registry.delete("x", 3)
    listing = records.listing()
    assert (listing.here, listing.gone) == ({Reference("x", 2)}, {Reference("x", 3)})
    registry.add("x", "d" * 64, FACTS)
    assert records.listing().gone == set(), "the newest tells where to go on"
    registry.delete("x")
    assert (records.listing().here, records.listing().gone) == (set(), {Reference("x", 4)})
    assert records.read_default() is None
    registry.close()


def test_a_record_that_cannot_be_written_fails_no_upload(
    records: VersionRecords, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    registry = AdapterRegistry(tmp_path / "r.sqlite", records)
    monkeypatch.setattr(records_module.os, "replace", full)
    with caplog.at_level(logging.WARNING):
        assert registry.add("x", "a" * 64, FACTS).version == 1
        registry.set_default("x")
    assert caplog.text.count("No space left") == 2
    assert list(records.folder.iterdir()) == []
    registry.close()


def test_a_version_whose_record_stays_is_not_deleted(
    records: VersionRecords, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next start would bring it back."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    registry = AdapterRegistry(tmp_path / "r.sqlite", records)
    registry.add("x", "a" * 64, FACTS)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="Read-only"):
        registry.delete("x")
    monkeypatch.undo()
    assert registry.get("x").version == 1
    registry.close()


def test_a_record_that_the_disk_did_not_take_is_written_at_the_next_change(
    records: VersionRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(records_module, "write_signed", fail)
        records.added(RECORD)
        records.default_set(Reference("a"))
    assert records.listing().here == set()
    records.default_set(Reference("a", 2))
    assert records.read(Reference("a", 2)) == RECORD
    assert records.read_default() == Reference("a", 2)


def test_the_record_of_a_version_whose_row_stays_is_written_again(records: VersionRecords, tmp_path: Path) -> None:
    registry = AdapterRegistry(tmp_path / "r.sqlite", records)
    record = registry.add("x", "a" * 64, FACTS)
    registry._writer.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_DELETE else 0)
    with pytest.raises(sqlite3.DatabaseError, match="not authorized"):
        registry.delete("x")
    registry._writer.set_authorizer(None)
    assert records.read(Reference("x", 1)) == record
    assert records.listing().gone == set()
    registry.close()
