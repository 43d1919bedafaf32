from collections.abc import Callable
from pathlib import Path
from types import ModuleType

Script = Callable[[str], ModuleType]


def test_lines_are_there_as_they_are_written(script: Script, tmp_path: Path) -> None:
    records, path = script("records"), tmp_path / "made/results.jsonl"
    assert list(records.read(path)) == []
    records.append(path, part="a", us=1.5)
    assert list(records.read(path)) == [{"part": "a", "us": 1.5}]
    records.append(path, part="b")
    with path.open("a") as out:
        out.write('12\n{"part": "c", "us": ')  # a number, and a writer that was stopped
    assert [record["part"] for record in records.read(path)] == ["a", "b"]


def test_without_a_file_nothing_is_written(script: Script) -> None:
    script("records").append(None, part="a")
