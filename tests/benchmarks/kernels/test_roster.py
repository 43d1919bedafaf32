from pathlib import Path

import pytest

from benchmarks.kernels.options import make_parser
from benchmarks.kernels.roster import UnknownContender, contenders_of, load_peers

PEER = """
from .helper import VALUE
class Peer:
    name, version = "json", VALUE
    def prepare(self, step):
        return None
def contenders():
    return [Peer()]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "json.py").write_text(PEER)
    (tmp_path / "helper.py").write_text("VALUE = '1.2'\n")
    return tmp_path


def names(folder: Path, *words: str) -> list[str]:
    return [c.name for c in contenders_of(make_parser().parse_args(["--peers", str(folder), *words]))]


def test_a_file_hides_no_module_of_its_name(folder: Path) -> None:
    (peer,) = load_peers(folder)
    assert peer.version == "1.2"
    import json

    assert json.dumps(1) == "1"


def test_who_is_measured(folder: Path) -> None:
    assert names(folder) == ["ours", "loop", "json"]
    assert names(folder, "--only", "json") == ["ours", "json"]
    assert names(folder, "--only", "ours") == ["ours"]
    with pytest.raises(UnknownContender, match="nobody"):
        names(folder, "--only", "nobody,loop")
