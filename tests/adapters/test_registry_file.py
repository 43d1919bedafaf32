import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from peftserve.adapters.errors import StateUnusable
from peftserve.adapters.facts import AdapterFacts
from peftserve.adapters.registry import AdapterRegistry
from peftserve.adapters.registry_file import NAME, copy_to, fault_of, files_of, salvage

FACTS = AdapterFacts("LORA", rank=8, num_bytes=100, primitives={"low_rank": 2}, sites=2, consumed=4)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """With a character that means something in an address."""
    folder = tmp_path / "a?b#c%41"
    folder.mkdir()
    with closing(AdapterRegistry(folder / NAME)) as registry:
        for digest in "abc":
            registry.add("x", digest * 64, FACTS)
    return folder / NAME


def test_a_whole_file_has_no_fault(path: Path) -> None:
    before = path.read_bytes()
    assert fault_of(path) is None
    assert path.read_bytes() == before
    assert fault_of(path.with_name("never")) is None, "a new folder's: it is made, and nothing is said"


def test_a_fault_is_one_line(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096 : 3 * 4096] = bytes(2 * 4096)
    path.write_bytes(content)
    fault = fault_of(path)
    assert fault is not None
    assert fault.startswith("is damaged (")
    assert "\n" not in fault


def test_a_fault_whose_text_is_none(path: Path) -> None:
    """SQLite quotes what it finds, and that need not be UTF-8."""
    content = path.read_bytes()
    assert b"tablenamesnames" in content
    path.write_bytes(content.replace(b"tablenamesnames", b"tablen\xffmesn\xffmes"))
    assert (fault_of(path) or "").startswith("is damaged (")


def test_what_is_left_of_a_damaged_file(path: Path) -> None:
    assert [row[:2] for row in salvage(path)] == [("x", 1), ("x", 2), ("x", 3)]
    path.write_bytes(b"junk" * 1000)
    assert salvage(path) == []
    assert salvage(path.with_name("never")) == []


def test_a_copy_while_it_is_written(path: Path, tmp_path: Path) -> None:
    with closing(AdapterRegistry(path)) as registry, registry.transaction() as db:
        db.execute("DELETE FROM versions")
        copy_to(path, tmp_path / "copy.sqlite")
    with closing(AdapterRegistry(tmp_path / "copy.sqlite")) as copy:
        assert copy.count() == 1, "what is not committed is not there"
    with pytest.raises(StateUnusable, match="cannot be read"):
        copy_to(path.with_name("never"), tmp_path / "another.sqlite")


def test_its_files_are_the_log_s_too(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("SELECT * FROM versions").fetchone()
        assert {file.name for file in files_of(path)} >= {NAME, f"{NAME}-wal"}
