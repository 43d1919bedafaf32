import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]


@pytest.fixture
def compare(script: Script, tmp_path: Path) -> Callable[..., int]:
    (tmp_path / "base").mkdir()

    def run(*flags: str) -> int:
        given = ["--base", str(tmp_path / "base"), "--logs", str(tmp_path / "logs"), "--output-tokens", "2"]
        code: int = script("serving.compare").main([*given, "--num-requests", "3", "--prompt-tokens", "4", *flags])
        return code

    return run


def test_servers_alternate_and_get_the_same_traces(
    compare: Callable[..., int], server_command: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [f"{name}={server_command(name)}" for name in ("one", "two")]
    adapters = ["--adapter", f"x={tmp_path}", "--adapter", f"y={tmp_path}"]
    out = tmp_path / "out.json"
    assert compare(*servers, *adapters, "--rate", "500", "--rounds", "2", "--out", str(out)) == 0
    notes = [line.split(" ", 1) for line in (tmp_path / "log").read_text().splitlines()]
    assert [name for name, what in notes if what == "starts"] == ["one", "two", "two", "one"]
    asked = [[what for _, what in notes[start : start + 6]] for start in range(0, len(notes), 6)]
    first, *others = (sorted(what[3:]) for what in asked)  # after the start and the two that warm it
    assert others[0] == first
    assert others[1] == others[2] != first
    report = json.loads(out.read_text())
    assert [run["all"]["requests"] for run in report["runs"]["one"]] == [3, 3]
    assert len(report["ratios"]["two"]["tok/s"]["rounds"]) == 2
    assert report["runs"]["one"][0]["models"].keys() == {"x", "y"}
    assert "one / two" in capsys.readouterr().out


def test_phases_are_measured_on_the_same_server_on_prompts_of_their_own(
    compare: Callable[..., int], server_command: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert (
        compare(f"one={server_command('one')}", "--rounds", "2", "--phases", "--threads", "3", "--out", str(out)) == 0
    )
    starts = [line for line in (tmp_path / "log").read_text().splitlines() if line == "one starts"]
    assert len(starts) == 2
    report = json.loads(out.read_text())
    assert report["threads"] == 3
    phases = [run["phases"] for run in report["runs"]["one"]]
    assert [phase["prefill"]["asked"]["output_tokens"] for phase in phases] == [8, 8]
    assert phases[0]["prefill"]["prompt_tokens_per_second"] > 0
    parts = [part for run in report["runs"]["one"] for part in (run, *run["phases"].values())]
    assert len({part["workload"]["seed"] for part in parts}) == 6
    assert "decode, tok/s" in capsys.readouterr().out


def test_a_server_that_does_not_answer_ends_it(
    compare: Callable[..., int], server_command: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(f"one={server_command('one', tokens=0)}") == 2
    assert "compare: base does not answer: the answer had no token\nlistening" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["vllm", "vllm"], "two servers have one name"),
        (["nobody"], "no preset is named 'nobody'"),
        (["vllm", "--cv", "2"], "--cv: only an open loop has it"),
        (["vllm", "--adapter", "x"], "there is no folder"),
        (["vllm", "--bin", "vllm-cpu=."], "'vllm-cpu=.' is not NAME=FOLDER with one of vllm"),
        (["vllm", "--environment", "vllm:X"], "'vllm:X' is not NAME:VARIABLE=VALUE with one of vllm"),
        (["transformers-batching", "--models", "x,y"], "transformers-batching serves 1 model, not 2"),
    ],
)
def test_mistakes(
    compare: Callable[..., int], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(*flags) == 2
    assert message in capsys.readouterr().err
