from pathlib import Path

import pytest

from peftserve.server.model_files import ModelFiles, gguf_files, model_files, model_id


@pytest.mark.parametrize(
    ("model", "place", "file", "name"),
    [
        ("owner/name", "owner/name", None, "owner/name"),
        ("owner/name/m-Q4_K_M.gguf", "owner/name", "m-Q4_K_M.gguf", "m-Q4_K_M"),
        ("m.GGUF", ".", "m.GGUF", "m"),
        ("/m.gguf", "/", "m.gguf", "m"),
        ("/models/nothing", "/models/nothing", None, "/models/nothing"),
    ],
)
def test_names(model: str, place: str, file: str | None, name: str) -> None:
    assert model_files(model) == ModelFiles(place, file)
    assert dict(model_files(model).told) == ({} if file is None else {"gguf_file": file})
    assert model_id(model) == name


def test_a_folder_is_its_one_file_unless_it_has_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    for name in ("mmproj-f16.gguf", "b.gguf"):
        (folder / name).touch()
    assert model_files(str(folder)) == ModelFiles(str(folder), "b.gguf")
    assert model_id(str(folder)) == "base"
    (folder / "a.gguf").touch()
    assert gguf_files(folder) == ["a.gguf", "b.gguf"]
    assert model_files(str(folder)).gguf is None
    (folder / "a.gguf").unlink()
    (folder / "config.json").touch()
    assert model_files(str(folder)).gguf is None
