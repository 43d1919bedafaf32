import logging
from pathlib import Path

import pytest

from peftserve.adapters.base_binding import FILE, BaseIdentity, bind, read
from peftserve.adapters.errors import StateUnusable

BASE = BaseIdentity("base", {"config": "1", "tensors": "2", "numbers": "3"})
OTHER = BaseIdentity("other", {"config": "1", "tensors": "2", "numbers": "4"})


def test_the_same_base_under_whatever_name(tmp_path: Path) -> None:
    bind(tmp_path, BASE, in_use=True, allow_other=False)
    bind(tmp_path, BaseIdentity("renamed", BASE.fingerprint), in_use=True, allow_other=False)
    assert read(tmp_path) == BaseIdentity("renamed", BASE.fingerprint)


def test_another_base_is_refused_unless_it_is_meant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bind(tmp_path, BASE, in_use=True, allow_other=False)
    with pytest.raises(StateUnusable, match=r"'base'.*its numbers differ.*--allow-other-base"):
        bind(tmp_path, OTHER, in_use=True, allow_other=False)
    assert read(tmp_path) == BASE
    with caplog.at_level(logging.WARNING):
        bind(tmp_path, OTHER, in_use=True, allow_other=True)
    assert "another base" in caplog.text
    bind(tmp_path, OTHER, in_use=True, allow_other=False)


def test_a_folder_without_adapters_takes_any_base(tmp_path: Path) -> None:
    bind(tmp_path, BASE, in_use=False, allow_other=False)
    bind(tmp_path, OTHER, in_use=False, allow_other=False)
    assert read(tmp_path) == OTHER


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff", b"[]", b'{"model": 3}'])
def test_a_note_that_cannot_be_read_is_written_again(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        bind(tmp_path, BASE, in_use=True, allow_other=False)
    assert "cannot be read" in caplog.text
    assert read(tmp_path) == BASE


def test_a_base_without_a_fingerprint_binds_nothing(tmp_path: Path) -> None:
    bind(tmp_path, BASE, in_use=True, allow_other=False)
    bind(tmp_path, BaseIdentity("x", {}), in_use=True, allow_other=False)
    assert read(tmp_path) == BASE
