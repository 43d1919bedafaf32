from pathlib import Path

import pytest

from benchmarks.swap.copies import Copies
from peftserve.adapters.safetensors_header import read_header
from peftserve.server.cli.errors import CommandError


def test_copies_differ_in_a_note_and_in_nothing_else(folder: Path, tmp_path: Path) -> None:
    copies = Copies(folder)
    (_, (_, config)), (_, (_, one)) = copies.form("one")
    assert config == (folder / "adapter_config.json").read_bytes()
    assert one != copies.form("other")[1][1][1]
    (tmp_path / "one").write_bytes(one)
    assert read_header(tmp_path / "one") == read_header(folder / "adapter_model.safetensors")
    assert one.endswith(b"12345678")
    assert (len(one) - 8) % 8 == 0


def test_a_folder_without_an_adapter(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(CommandError, match="no safetensors"):
        Copies(folder)
