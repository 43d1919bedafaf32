"""What the host has no room for comes back from disk as it was, or not at all."""

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from peftserve.server.engine.adapters.packing import AdapterLayout, Blob, OpLayout, Place, SharedPiece
from peftserve.server.engine.adapters.spill import MOST_WAITING, Spill

MakeBlob = Callable[[int, float], Blob]
PATIENCE = 30


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The total and the free bytes that the disk is said to have: the tests' own may be nearly full."""
    said = [1 << 40, 1 << 39]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=said[0], free=said[1]))
    return said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "compiled"


@pytest.fixture
def spill(folder: Path) -> Iterator[Spill]:
    spill = Spill(folder, 1 << 20, torch.float32)
    yield spill
    spill.close()


def write(spill: Spill, key: str, blob: Blob) -> None:
    spill.keep(key, blob)
    spill._worker.submit(int).result(PATIENCE)


def same(one: Blob | None, other: Blob) -> bool:
    return one is not None and one.layout == other.layout and torch.equal(one.data, other.data)


def test_a_blob_comes_back_as_it_was(spill: Spill) -> None:
    place = Place(0, torch.Size([2, 3]), torch.int32)
    layout = AdapterLayout(ops={"x": (OpLayout("rows", {"ids": place}, {"activation": "relu", "group": 2}),)})
    blob = Blob(torch.randn(100), layout)
    write(spill, "a", blob)
    write(spill, "a:3", Blob(torch.randn(50), layout))
    assert same(spill.read("a"), blob)
    found = spill.read("a:3")
    assert found is not None
    assert found.layout.ops["x"][0].places["ids"] == place
    assert spill.read("b") is None


def test_16_bit_numbers_too(folder: Path) -> None:
    spill = Spill(folder, 1 << 20, torch.bfloat16)
    blob = Blob(torch.randn(64).bfloat16(), AdapterLayout())
    write(spill, "a", blob)
    assert same(spill.read("a"), blob)
    spill.close()


def test_all_of_an_adapter_is_forgotten(spill: Spill, folder: Path, make_blob: MakeBlob) -> None:
    for key in ("a", "a:1", "b"):
        write(spill, key, make_blob(8, 1.0))
    spill.forget("a").result(PATIENCE)
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert spill.read("a") is None
    assert spill.num_bytes == 32
    assert spill.forget("never").done()


def test_what_waits_to_be_written_is_forgotten_too(spill: Spill, folder: Path, make_blob: MakeBlob) -> None:
    spill.keep("a", make_blob(8, 1.0))
    spill.forget("a").result(PATIENCE)
    assert not [*folder.iterdir()]


def test_it_keeps_no_more_than_it_may(folder: Path, make_blob: MakeBlob) -> None:
    spill = Spill(folder, 64, torch.float32)
    for key in "abc":
        write(spill, key, make_blob(8, 1.0))
    assert ["a" in spill, "b" in spill, "c" in spill] == [True, True, False]
    spill.close()


def test_blobs_do_not_pile_up_in_memory(spill: Spill, make_blob: MakeBlob) -> None:
    go = threading.Event()
    spill._worker.submit(go.wait, PATIENCE)
    for key in range(MOST_WAITING + 3):
        spill.keep(str(key), make_blob(8, 1.0))
    go.set()
    spill._worker.submit(int).result(PATIENCE)
    assert sum(str(key) in spill for key in range(MOST_WAITING + 3)) == MOST_WAITING


@pytest.mark.parametrize(
    "blob",
    [
        Blob(torch.zeros(4), AdapterLayout(), (SharedPiece("k", torch.zeros(4)),)),
        Blob(torch.zeros(4), AdapterLayout(ops={"x": (OpLayout("rows", {}, {"sizes": (1, 2)}),)})),
        Blob(torch.zeros(4), AdapterLayout(ops={"x": (OpLayout("rows", {}, {"what": object()}),)})),
    ],
    ids=["shared pieces", "a tuple among the values", "what is no plain value"],
)
def test_what_would_not_come_back_the_same_is_not_kept(spill: Spill, blob: Blob) -> None:
    write(spill, "a", blob)
    assert spill.read("a") is None


def test_a_file_that_was_cut_is_no_blob(spill: Spill, folder: Path, make_blob: MakeBlob) -> None:
    write(spill, "a", make_blob(8, 1.0))
    (folder / "a").write_bytes(b"12")
    assert spill.read("a") is None


@pytest.mark.parametrize("place", [0, 7, 9, -1])
def test_a_flipped_bit_is_no_blob(spill: Spill, folder: Path, make_blob: MakeBlob, place: int) -> None:
    """Of the length, of the layout or of the data; it is compiled again, and may be written again."""
    blob = make_blob(8, 1.0)
    write(spill, "a", blob)
    content = bytearray((folder / "a").read_bytes())
    content[place] ^= 1
    (folder / "a").write_bytes(content)
    assert spill.read("a") is None
    assert spill.num_damaged == 1
    spill._worker.submit(int).result(PATIENCE)
    write(spill, "a", blob)
    assert same(spill.read("a"), blob)


def test_what_an_engine_before_has_left_is_deleted(folder: Path, make_blob: MakeBlob) -> None:
    folder.mkdir()
    (folder / "a").write_bytes(b"old")
    spill = Spill(folder, 1 << 20, torch.float32)
    assert not folder.exists()
    spill.close()


def test_no_folder(make_blob: MakeBlob) -> None:
    spill = Spill(None, 1 << 20, torch.float32)
    write(spill, "a", make_blob(8, 1.0))
    assert spill.read("a") is None
    spill.close()
