import os
from pathlib import Path

import pytest

from peftserve.server.checkpoint.errors import MergeRefused
from peftserve.server.checkpoint.publication import published


def test_a_folder_appears_when_all_of_it_is_there(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with published(out) as folder:
        (folder / "file").write_text("a")
        assert not out.exists()
    assert (out / "file").read_text() == "a"
    assert os.listdir(out.parent) == ["out"]


def test_all_of_it_and_every_new_name_is_on_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    out = tmp_path / "a" / "b" / "out"
    with published(out) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "file").write_text("a")
    parents = [str(tmp_path), str(tmp_path / "a")]
    assert sorted(synced[:2]) == parents
    assert {*synced[2:-1]} == {str(folder), str(folder / "part"), str(folder / "part" / "file")}
    assert synced[-1] == str(out.parent)


def test_after_an_error_nothing_is_there_and_what_is_there_stays(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), published(out):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)
    out.write_text("mine")
    with pytest.raises(MergeRefused, match="already"), published(out):
        raise AssertionError
    assert out.read_text() == "mine"
    out.unlink()
    with pytest.raises(MergeRefused, match="already"), published(out):
        out.mkdir()
    assert os.listdir(tmp_path) == ["out"]


def test_what_killed_ones_left_goes_and_what_runs_stays(tmp_path: Path) -> None:
    out, left = tmp_path / "out", tmp_path / ".out.0123.partial"
    left.mkdir()
    (left / "file").write_text("half")
    with published(out):
        assert not left.exists()
        with published(tmp_path / "another"):
            assert len(list(tmp_path.glob(".*.partial"))) == 2
        with published(out):
            pass
        (running,) = tmp_path.glob(".*.partial")
        out.rmdir()
    assert not running.exists()
    assert sorted(os.listdir(tmp_path)) == ["another", "out"]
