import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.swap import first_token
from benchmarks.swap import main as swap
from benchmarks.swap.main import main
from benchmarks.swap.own_server import OwnServer


@pytest.fixture
def run(tiered: Any, folder: Path) -> Callable[..., int]:
    sizes = ["--rounds", "2", "--copies", "8", "--streams", "1", "--window", "0.3", "--requests", "8"]
    return lambda *more: main(["--base-url", tiered.url, "--adapter", str(folder), *sizes, *more])


@pytest.mark.slow
def test_a_run_on_a_server_that_runs(
    run: Callable[..., int], tiered: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiered.slow = 0.01
    assert run("--out", str(tmp_path / "out.json")) == 0
    made = json.loads((tmp_path / "out.json").read_text())
    assert made["first_token"]["adapters_loaded"] == {
        "device": 2,
        "host": 2,
        "disk": 2,
        "restarted": 0,
        "upload": 2,
        "after_upload": 2,
    }
    assert made["first_token"]["extra_ms"].keys() == {"host", "disk", "after_upload"}
    assert all(made["stall"]["gaps"].values())
    assert made["stall"]["events"]["load"] >= 2
    assert made["cycle"]["disk"]["loads"] >= 6
    assert made["cycle"]["disk"]["adapters"] == 8
    assert not tiered.contents
    shown = capsys.readouterr().out
    assert "on disk" in shown
    assert "requests for ones to load" in shown


@pytest.fixture
def own(tiered: Any, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """State folders of the servers that were started. All are `tiered`, which forgets what is not on disk."""
    folders: list[Path] = []

    @contextlib.contextmanager
    def started(model: str | None, flags: list[str], pools: dict[str, int], folder: Path) -> Iterator[OwnServer]:
        folders.append(folder)
        tiered.device, tiered.host = [], []
        yield OwnServer(tiered.url, os.getpid())

    monkeypatch.setattr(swap, "started", started)
    return folders


def test_its_own_server_is_restarted(own: list[Path], folder: Path, tmp_path: Path) -> None:
    sizes = ["--rounds", "1", "--copies", "8", "--measure", "first-token", "--out", str(tmp_path / "out.json")]
    assert main(["--adapter", str(folder), *sizes]) == 0
    assert len(own) == 2
    assert own[0] == own[1]
    made = json.loads((tmp_path / "out.json").read_text())["first_token"]
    assert made["adapters_loaded"]["restarted"] == 8 - first_token.WARMING
    assert made["adapters_loaded"]["disk"] == 1


def test_throughput_over_what_is_registered(
    own: list[Path], tiered: Any, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--registered", "10,1", "--rounds", "1", "--requests", "6", "--hot", "2"]
    out = tmp_path / "out.json"
    command = ["--adapter", str(folder), "--measure", "registered", *sizes, "--out", str(out)]
    assert main(command) == 0
    made = json.loads(out.read_text())["registered"]
    assert [*made] == ["1", "10"]
    assert made["10"]["hot"]["over_baseline"] == 1
    assert made["10"]["hot"]["failed"] == 0
    assert len(tiered.contents) == 11
    assert own[0] != own[1]
    assert "power tok/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--measure", "first"], "'first' is none of"),
        (["--measure", "registered"], "starts them itself"),
        (["--serve", "--max-loras 2"], "has its model and its flags already"),
        (["--copies", "2"], "too few"),
        (["--adapter", "/no/such/folder"], "holds no"),
    ],
)
def test_mistakes(run: Callable[..., int], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*flags) == 2
    assert message in capsys.readouterr().err


def test_a_model_of_ones_own_needs_an_adapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["some/model"]) == 2
    assert "--adapter" in capsys.readouterr().err
