import argparse
from pathlib import Path

import pytest

from benchmarks.kernels import options
from benchmarks.kernels.problem import SHAPES


def parse(*words: str) -> argparse.Namespace:
    return options.make_parser().parse_args(words)


def test_shapes_are_those_of_the_steps() -> None:
    assert set(options.SHAPES) == set(SHAPES)


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
    assert options.command(given) == "python -m benchmarks.kernels --quick --rounds 3"


def test_counts_are_positive() -> None:
    with pytest.raises(SystemExit):
        parse("--rounds", "0")
