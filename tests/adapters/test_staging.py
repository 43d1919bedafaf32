import errno
import hashlib
import os
from pathlib import Path

import pytest

from peftserve.adapters import staging
from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter, StoreFailed, StoreFull
from peftserve.adapters.files import CONFIG, WEIGHTS
from peftserve.adapters.staging import StagedUpload


@pytest.fixture
def staged(tmp_path: Path) -> StagedUpload:
    folder = tmp_path / "staged"
    folder.mkdir()
    return StagedUpload(folder, limit=1000)


def write(staged: StagedUpload, name: str, content: bytes) -> None:
    with staged.open(name) as file:
        for i in range(0, len(content), 7):
            file.write(content[i : i + 7])


def test_digest_is_that_of_both_files_hashes_in_either_order(staged: StagedUpload) -> None:
    write(staged, WEIGHTS, b"weights" * 50)
    write(staged, CONFIG, b"config")
    lines = f"{CONFIG} {hashlib.sha256(b'config').hexdigest()}\n"
    lines += f"{WEIGHTS} {hashlib.sha256(b'weights' * 50).hexdigest()}\n"
    assert staged.digest == hashlib.sha256(lines.encode()).hexdigest()
    assert staged.num_bytes == 356
    assert (staged.path / WEIGHTS).read_bytes() == b"weights" * 50
    assert (staged.path / CONFIG).stat().st_mode & 0o777 == 0o600


def test_files_of_another_process_are_as_if_written_here(staged: StagedUpload, tmp_path: Path) -> None:
    (staged.path / CONFIG).write_bytes(b"config")
    (staged.path / WEIGHTS).write_bytes(b"weights")
    staged.adopt()
    (other := tmp_path / "other").mkdir()
    written = StagedUpload(other, limit=1000)
    for name in (CONFIG, WEIGHTS):
        write(written, name, (staged.path / name).read_bytes())
    assert (staged.digest, staged.num_bytes) == (written.digest, written.num_bytes)
    assert (staged.path / CONFIG).stat().st_mode & 0o777 == 0o600
    (large := tmp_path / "large").mkdir()
    (large / CONFIG).write_bytes(b"config")
    (large / WEIGHTS).write_bytes(b"w" * 1000)
    with pytest.raises(AdapterTooLarge):
        StagedUpload(large, limit=1000).adopt()
    (large / WEIGHTS).unlink()
    (large / WEIGHTS).symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        StagedUpload(large, limit=1000).adopt()


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_or_unfinished_file_has_no_digest(staged: StagedUpload, missing: str) -> None:
    for name in {CONFIG, WEIGHTS} - {missing}:
        write(staged, name, b"x")
    unfinished = staged.open(missing)
    unfinished.write(b"half")
    with pytest.raises(InvalidAdapter, match=f"{missing} is missing"):
        _ = staged.digest
    unfinished.abandon()
    with pytest.raises(InvalidAdapter, match=f"{missing} is missing"):
        _ = staged.digest


def test_a_file_whose_sender_failed_is_not_finished(staged: StagedUpload) -> None:
    write(staged, CONFIG, b"x")

    def send() -> None:
        with staged.open(WEIGHTS) as file:
            file.write(b"half")
            raise ConnectionError

    with pytest.raises(ConnectionError):
        send()
    with pytest.raises(InvalidAdapter, match="missing"):
        _ = staged.digest


@pytest.mark.parametrize("name", ["adapter_model.bin", "folder/pytorch_adapter.bin"])
def test_pickled_weights_alone_are_refused_by_name(staged: StagedUpload, name: str) -> None:
    write(staged, CONFIG, b"{}")
    assert staged.receive(name) is None
    with pytest.raises(InvalidAdapter, match="pickle"):
        _ = staged.digest
    assert staged.skipped == [name]


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        f"../{CONFIG}",
        f"/{CONFIG}",
        f"a/b/{CONFIG}",
        f".a/{CONFIG}",
        f"a\0/{CONFIG}",
        "/etc/passwd",
        "",
        "a\0b",
    ],
)
def test_other_files_are_refused(staged: StagedUpload, name: str) -> None:
    with pytest.raises(InvalidAdapter, match="not part of an adapter"):
        staged.open(name)
    assert os.listdir(staged.path) == []


def test_a_file_sent_twice(staged: StagedUpload) -> None:
    write(staged, CONFIG, b"x")
    with pytest.raises(InvalidAdapter, match="sent twice"):
        staged.open(CONFIG)


def test_size_caps(staged: StagedUpload, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AdapterTooLarge, match="limit of 1000 bytes"):
        write(staged, WEIGHTS, b"x" * 1001)
    assert (staged.path / WEIGHTS).stat().st_size <= 1000
    monkeypatch.setattr(staging, "MAX_CONFIG_BYTES", 10)
    with pytest.raises(AdapterTooLarge, match=r"adapter_config\.json is over 10 bytes"):
        write(StagedUpload(staged.path, 1000), CONFIG, b"x" * 11)


@pytest.mark.parametrize("failing", ["write", "fsync"])
@pytest.mark.parametrize("error", [errno.EIO, errno.EROFS])
def test_a_disk_that_fails_is_named(
    staged: StagedUpload, monkeypatch: pytest.MonkeyPatch, failing: str, error: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(error, "of the system")

    monkeypatch.setattr(staging.os, failing, fail)
    with pytest.raises(StoreFailed, match=os.strerror(error)):
        write(staged, WEIGHTS, b"x")


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_is_named(staged: StagedUpload, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(staging.os, failing, fail)
    with pytest.raises(StoreFull, match="no room"):
        write(staged, WEIGHTS, b"x")
    monkeypatch.undo()
    with pytest.raises(InvalidAdapter, match="missing"):
        _ = staged.digest


def test_short_writes_are_completed(staged: StagedUpload, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(staging.os, "write", lambda fd, data: real(fd, data[:3]))
    write(staged, WEIGHTS, b"0123456789")
    assert (staged.path / WEIGHTS).read_bytes() == b"0123456789"


def test_copies_a_folder_with_links_as_a_hub_cache_has_them(staged: StagedUpload, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for name in (CONFIG, WEIGHTS):
        (blobs / name).write_bytes(b"{}")
        (snapshot / name).symlink_to(blobs / name)
    (snapshot / "README.md").write_text("ignored")
    staged.copy_folder(snapshot)
    assert staged.digest
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InvalidAdapter, match="outside of the folders"):
        StagedUpload(other, 1000).copy_folder(snapshot, inside=[snapshot])
    StagedUpload(other, 1000).copy_folder(snapshot, inside=[tmp_path / "elsewhere", tmp_path])


@pytest.mark.parametrize("home", ["adapter", "."], ids=["below", "beside"])
def test_copies_the_experts_that_a_router_names(staged: StagedUpload, tmp_path: Path, home: str) -> None:
    for folder in (tmp_path / "adapter", tmp_path / home / "task_0", tmp_path / home / "task_1"):
        folder.mkdir()
        (folder / CONFIG).write_text('{"arrow_config": {"task_adapter_names": ["task_0"]}}')
        (folder / WEIGHTS).write_bytes(b"weights")
    staged.copy_folder(tmp_path / "adapter")
    assert staged.experts == ["task_0"]
    assert (staged.path / "task_0" / WEIGHTS).read_bytes() == b"weights"
    assert sorted(os.listdir(staged.path)) == [CONFIG, WEIGHTS, "task_0"]


def test_experts_lie_inside_too(staged: StagedUpload, tmp_path: Path) -> None:
    inside, secret = tmp_path / "inside", tmp_path / "task_0"
    for folder in (inside, secret):
        folder.mkdir()
        (folder / CONFIG).write_text('{"arrow_config": {"task_adapter_names": ["task_0"]}}')
        (folder / WEIGHTS).write_bytes(b"weights")
    with pytest.raises(InvalidAdapter, match="outside of the folders"):
        staged.copy_folder(inside, inside=[inside])


def test_an_expert_s_files_are_part_of_the_digest(staged: StagedUpload) -> None:
    for name in (CONFIG, WEIGHTS):
        write(staged, name, b"x")
    alone = staged.digest
    write(staged, f"task_0/{WEIGHTS}", b"y")
    with pytest.raises(InvalidAdapter, match=f"task_0/{CONFIG} is missing"):
        _ = staged.digest
    write(staged, f"task_0/{CONFIG}", b"z")
    assert staged.digest != alone


def test_copying_what_is_no_file(staged: StagedUpload, tmp_path: Path) -> None:
    with pytest.raises(InvalidAdapter, match=f"no readable {CONFIG}"):
        staged.copy_folder(tmp_path / "nowhere")
    os.mkfifo(tmp_path / CONFIG)
    with pytest.raises(InvalidAdapter, match=f"no readable {CONFIG}"):
        staged.copy_folder(tmp_path)
