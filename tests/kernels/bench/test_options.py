import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from peftserve.kernels.bench import options
from peftserve.kernels.bench.steps import SHAPES


def parse(*words: str) -> argparse.Namespace:
    return options.make_parser().parse_args(words)


def test_shapes_are_those_of_the_steps() -> None:
    assert set(options.SHAPES) == set(SHAPES)


def test_options_import_no_torch() -> None:
    program = "import sys, peftserve.kernels.bench.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_folders_are_those_of_the_repository_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert options.peers_folder(parse()) is None
    assert options.out_folder(parse()) == Path()
    (tmp_path / options.PEERS).mkdir(parents=True)
    (tmp_path / options.RESULTS).mkdir()
    assert options.peers_folder(parse()) == options.PEERS
    assert options.out_folder(parse()) == options.RESULTS
    assert options.peers_folder(parse("--peers", "x")) == Path("x")


def test_the_command_names_no_folder() -> None:
    given = parse("--quick", "--rounds", "3", "--out", "/somewhere", "--peers", "/else", "--phase", "all")
    assert options.command(given) == "peftserve bench kernels --quick --rounds 3"


def test_counts_are_positive() -> None:
    with pytest.raises(SystemExit):
        parse("--rounds", "0")
