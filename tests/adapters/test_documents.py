import os
from pathlib import Path

import pytest

from peftserve.adapters.documents import Document, DocumentFiles
from peftserve.adapters.signed_files import read_signed, write_signed


def document(name: str, version: int = 1, body: str = "{}") -> Document:
    return Document(name, version, 1.5, body)


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.fixture
def files(tmp_path: Path) -> DocumentFiles:
    return DocumentFiles(tmp_path)


def test_the_newest_version_alone_has_a_file(files: DocumentFiles, tmp_path: Path) -> None:
    files.put(document("r"))
    files.put(document("r", 4), before=1)
    files.put(document("s.json"))
    assert names(tmp_path) == {"r@4.json", "s.json@1.json"}
    files.remove("r", 4)
    files.remove("r", 4)
    assert names(tmp_path) == {"s.json@1.json"}


def test_rows_count_and_what_a_kill_left_goes(files: DocumentFiles, tmp_path: Path) -> None:
    """A row without its file gets it; files without a row, of an older version or half written, go."""
    files.put(document("old"))
    files.put(document("gone"))
    (tmp_path / ".0123").write_text("half")
    rows = [document("old", 2), document("new")]
    assert files.settle(rows, lambda one: True, is_new=False) == []
    assert names(tmp_path) == {"old@2.json", "new@1.json"}


def test_a_new_registry_gets_what_it_has_lost_and_is_valid(files: DocumentFiles, tmp_path: Path) -> None:
    kept = [document("a", 3, "1"), document("b", 1, "2"), document("c")]
    for one in kept:
        files.put(one)
    whole = (tmp_path / "b@1.json").read_bytes()
    (tmp_path / "b@1.json").write_bytes(whole.replace(b'"2"', b'"3"'))
    (tmp_path / "a@9.json").write_bytes((tmp_path / "c@1.json").read_bytes())  # another's content
    found = files.settle([], lambda one: one.name != "c", is_new=True)
    assert found == [kept[0]]
    assert names(tmp_path) == {"a@3.json"}


def test_of_two_versions_that_a_crash_left_the_newest_is_what_was_lost(files: DocumentFiles, tmp_path: Path) -> None:
    for version in (9, 10, 2):
        files.put(document("a", version))
    files.put(document("a", 11, "no"))
    assert files.settle([], lambda one: one.body != "no", is_new=True) == [document("a", 10)]
    assert names(tmp_path) == {"a@10.json"}
    files.put(document("a", 9))
    assert files.settle([document("a", 10)], lambda one: True, is_new=True) == []
    assert names(tmp_path) == {"a@10.json"}


def test_no_room_is_a_warning(files: DocumentFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tmp_path.rename(tmp_path.with_name("away"))
    files.put(document("r"))
    assert "No file of r could be kept" in caplog.text


def test_a_signed_file_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert read_signed(path, Document) is None
    for durable in (True, False):
        write_signed(path, document("r"), durable=durable)
        assert read_signed(path, Document) == document("r")
    assert read_signed(path, int) is None
    content = path.read_bytes()
    for damaged in (b"", content[:-5], content.replace(b"1.5", b"2.5"), b"\xff", b"[]"):
        path.write_bytes(damaged)
        assert read_signed(path, Document) is None
    assert names(tmp_path) == {"file"}
