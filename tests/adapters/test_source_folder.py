"""Files of a folder of this machine: whatever is swapped for a link while they are opened, none from outside."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.source_folder import SourceFolder, open_below
from peftserve.adapters.staging import StagedUpload
from peftserve.adapters.upload_names import INDEX

_at_open: list[Callable[[], None]] = []  # called before a file is opened, while there is one: hooks stay for ever


def _hook(event: str, _: tuple[object, ...]) -> None:
    if event == "open" and _at_open:
        _at_open[0]()


sys.addaudithook(_hook)


@contextmanager
def before_open(number: int, act: Callable[[], None]) -> Iterator[list[int]]:
    """Call `act` before the file or folder with this number is opened. Yields a list with how many were."""
    opened = [0]

    def note() -> None:
        opened[0] += 1
        if opened[0] == number + 1:
            act()

    _at_open.append(note)
    try:
        yield opened
    finally:
        _at_open.clear()


def adapter(folder: Path, weights: bytes, arrow: str = "") -> None:
    folder.mkdir(parents=True)
    (folder / CONFIG).write_text(json.dumps({"arrow_config": {"task_adapter_names": [arrow]}} if arrow else {}))
    (folder / WEIGHTS).write_bytes(weights)
    (folder / "tokenizer_config.json").write_bytes(weights)


def copied(place: Path, reached: str, swapped: str, number: int) -> tuple[int, set[bytes], str]:
    """Copy an adapter, and swap a part of it before the given open. Returns opens, what was copied, why not more."""
    root, outside = place / "root", place / "outside"
    for top, weights in ((root, b"allowed"), (outside, b"secret")):
        adapter(top / "team/adapter", weights, arrow="expert")
        adapter(top / "team/adapter/expert", weights)
    (root / "link").symlink_to(root / "team/adapter")
    (place / "staged").mkdir()

    def swap() -> None:
        (root / swapped).rename(root / "aside")
        (root / swapped).symlink_to(outside / swapped)

    refusal, staged = "", StagedUpload(place / "staged", 10_000)
    with before_open(number, swap) as opened:
        try:
            staged.copy_folder(root / reached, inside=[root])
        except InvalidAdapter as error:
            refusal = error.message
    return opened[0], {path.read_bytes() for path in staged.path.rglob("*") if path.is_file()}, refusal


@pytest.mark.parametrize("swapped", ["team", "team/adapter", "team/adapter/expert", f"team/adapter/{WEIGHTS}"])
@pytest.mark.parametrize("reached", ["team/adapter", "link"])
def test_nothing_outside_is_read_whatever_is_swapped_for_a_link_at_any_moment(
    tmp_path: Path, swapped: str, reached: str
) -> None:
    opened, content, _ = copied(tmp_path / "whole", reached, swapped, -1)
    assert opened > 6
    assert b"allowed" in content
    refusals = set()
    for number in range(opened):
        _, content, refusal = copied(tmp_path / str(number), reached, swapped, number)
        assert b"secret" not in content, number
        refusals.add(refusal)
    assert refusals - {""}
    assert str(tmp_path) not in "".join(refusals)


def test_links_that_end_inside_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    adapter(root / "blobs", b"weights")
    (root / "snapshot").mkdir()
    (root / "snapshot" / CONFIG).symlink_to(f"../blobs/{CONFIG}")
    (root / "snapshot" / INDEX).symlink_to(f"../blobs/{WEIGHTS}")
    shard = "adapter_model-00001-of-00001.safetensors"
    (root / "snapshot" / shard).symlink_to(root / "blobs" / WEIGHTS)
    (tmp_path / "to_root").symlink_to(root)
    for inside in ([root], [tmp_path / "to_root"], [tmp_path / "nowhere", tmp_path], None):
        source = SourceFolder(root / "snapshot", inside)
        assert source.weights() == [CONFIG, INDEX, shard]
        file = source.open(shard)
        assert file is not None
        with file:
            assert file.read() == b"weights"
    with pytest.raises(InvalidAdapter, match="outside of the folders"):
        SourceFolder(root / "snapshot", [root / "snapshot"]).open(CONFIG)


def test_what_is_no_file_or_cannot_be_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CONFIG)
    (tmp_path / WEIGHTS).symlink_to(WEIGHTS)
    (tmp_path / INDEX).mkdir()
    for inside in (None, [tmp_path]):
        source = SourceFolder(tmp_path, inside)
        assert source.open(CONFIG) is source.open(INDEX) is source.open("absent") is None
        with pytest.raises(InvalidAdapter, match="no readable"):
            source.open(WEIGHTS)


def test_no_link_is_followed_on_the_way_down(tmp_path: Path) -> None:
    adapter(tmp_path / "a/b", b"weights")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "a/file").symlink_to(f"b/{WEIGHTS}")
    os.close(open_below(tmp_path, ["a", "b", WEIGHTS], os.O_RDONLY))
    os.close(open_below(tmp_path, [], os.O_RDONLY))
    for parts in (["link", "b", WEIGHTS], ["a", "file"], ["a", "b", "absent"]):
        with pytest.raises(OSError, match=r"."):
            open_below(tmp_path, parts, os.O_RDONLY)
