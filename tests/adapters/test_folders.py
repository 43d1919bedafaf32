import os
import stat
from pathlib import Path

import pytest

from peftserve.adapters.folders import fsync_folder, make_folder


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of what is synced."""
    paths: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda fd: paths.append(Path(os.readlink(f"/proc/self/fd/{fd}"))))
    return paths


def test_each_folder_that_holds_a_new_name_is_synced(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path / "a" / "b")
    assert set(synced) == {tmp_path, tmp_path / "a"}
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_what_is_there_costs_no_sync(tmp_path: Path, synced: list[Path]) -> None:
    make_folder(tmp_path)
    assert synced == []
    fsync_folder(tmp_path)
    assert synced == [tmp_path]


def test_a_file_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a")
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "a" / "b")
