import logging
import threading
from pathlib import Path

import pytest

from peftserve.server.api.tenancy.key_file import KeyFileError
from peftserve.server.api.tenancy.keyring import Keyring


def test_who_changes_the_file_changes_the_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file, told = tmp_path / "keys", []
    file.write_text("k1\nk2\n")
    ring = Keyring(("always",), file)
    ring.on_change = lambda count, fault: told.append((count, fault))

    def look() -> list[bool]:
        ring.refresh()
        ring.refresh()  # one that is half written is not taken
        return [ring.find(key) is not None for key in (b"always", b"k1", b"k2", b"k3")]

    assert look() == [True, True, True, False]
    assert not ring.is_open
    file.write_text("k1\nk3\n")
    ring.refresh()
    assert ring.find(b"k2") is not None, "at the first look it may be half written"
    assert look() == [True, True, False, True]
    for content in ("", '[[keys]]\nname = "a"\nkey = 1\n'):
        file.write_text(content)
        assert look() == [True, True, False, True], "a broken file changes nothing"
    file.unlink()
    look()
    assert look() == [True, True, False, True]
    file.write_text('[[keys]]\nname = "a"\nkey = "k2"\n')
    assert look() == [True, False, True, False]
    faults = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert len(faults) == 3, "each is said once"
    assert [fault is None for _, fault in told] == [True, False, False, False, True]


def test_a_broken_file_is_no_start(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    with pytest.raises(KeyFileError, match="cannot be read: No such file"):
        Keyring(file=file)
    file.write_text("[[keys]]\n")
    with pytest.raises(KeyFileError, match="name must be"):
        Keyring(file=file)
    assert Keyring().is_open


def test_the_file_is_watched_while_it_is_asked_to(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("k1\n")
    ring = Keyring(file=file)
    looked = threading.Event()
    ring.refresh = looked.set  # type: ignore[method-assign]
    with ring.watching():
        assert looked.wait(60)


def test_a_look_that_fails_is_not_the_last(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("k1\n")
    ring = Keyring(file=file)
    looks, looked_again = iter(range(2)), threading.Event()

    def refresh() -> None:
        if next(looks, 1) == 1:
            looked_again.set()
        else:
            raise RuntimeError("nobody has thought of this")

    ring.refresh = refresh  # type: ignore[method-assign]
    with ring.watching():
        assert looked_again.wait(60)
