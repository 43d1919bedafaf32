"""A run of parts that go wrong in every way there is: each is named in the end, and the others have run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Script = Callable[[str], ModuleType]
PATIENCE = 60.0


@pytest.fixture
def run(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """The exit status, and the last lines, of a run of parts that are given as stages of Python programs."""
    gpu, parts = script("gpu"), script("gpu_parts")

    def of(stages: Sequence[Sequence[str]], seconds: float = PATIENCE, **more: Any) -> Callable[[Any], Any]:
        def command(program: str) -> Any:
            return parts.Command((sys.executable, "-S", "-c", program), seconds)

        return lambda _: parts.Part("", [[command(program) for program in stage] for stage in stages], **more)

    def start(given: dict[str, Any], *words: str) -> tuple[int, list[str]]:
        made = {name: of(**(each if isinstance(each, dict) else {"stages": each})) for name, each in given.items()}
        monkeypatch.setattr(gpu, "PARTS", made)
        status = gpu.main(["--out", str(tmp_path), "--device", "cuda", *words, *given])
        lines = capsys.readouterr().out.splitlines()
        assert (tmp_path / "gpu.log").read_text().splitlines() == lines
        last = next(i for i, line in enumerate(lines) if " s in all, " in line)
        return status, lines[last:]

    return start


def test_what_fails_is_named_and_the_others_run(run: Callable[..., Any], script: Script, tmp_path: Path) -> None:
    there = f"open({str(tmp_path / 'there')!r}, 'a').write('x')"
    status, lines = run({"bad": [["raise SystemExit(3)"], [there]], "good": [[there]]})
    assert status == 1
    assert lines[0].endswith("2 parts: 1 problems")
    assert lines[1].startswith("   bad: failed with 3: python -S -c ")
    assert (tmp_path / "there").read_text() == "xx"
    ended = [record["problem"] for record in script("records").read(tmp_path / "results.jsonl")]
    assert ended == ["failed with 3", None, None]


def test_a_command_that_takes_too_long_is_stopped_with_all_that_it_started(
    run: Callable[..., Any], script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(p.pid)); p.wait()"
    file = tmp_path / "pid"

    def start(*words: Any, **options: Any) -> Any:
        """Return a process when the child is there, however long that takes: the limit is over then, or soon."""
        process = subprocess.Popen(*words, **options)
        _wait_until(lambda: file.exists() and file.read_text() != "")
        return process

    monkeypatch.setattr(script("gpu"), "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": start}))
    parts = {"long": {"stages": [[f"{child}; {note}"]], "seconds": 1}, "next": [["print('here')"]]}
    status, lines = run(parts)
    assert status == 1
    assert lines[1].startswith("   long: stopped after 1 s: ")
    assert len(lines) == 2
    _wait_until(lambda: not _runs(int(file.read_text())))


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_the_commands_of_a_stage_run_at_the_same_time(run: Callable[..., Any], tmp_path: Path) -> None:
    """Each waits for what the other one makes."""
    programs = [
        f"import os, time\nopen({str(tmp_path / mine)!r}, 'w')\n"
        f"while not os.path.exists({str(tmp_path / its)!r}): time.sleep(0.01)"
        for mine, its in (("a", "b"), ("b", "a"))
    ]
    status, lines = run({"both": [programs]})
    assert (status, len(lines)) == (0, 1)


def test_an_engine_without_graphs_is_a_problem(run: Callable[..., Any]) -> None:
    warning = "this model runs without CUDA graphs, so that it decodes slower: no memory"
    status, lines = run({"decode": [[f"print({warning!r})"]]})
    assert status == 1
    assert lines[1].startswith("   decode: ran without CUDA graphs: ")


def test_what_finds_no_time_is_named(run: Callable[..., Any]) -> None:
    status, lines = run({"a": [["print('here')"], ["print('there')"]]}, "--seconds", "5")
    assert status == 1
    assert [line.split(": ")[1] for line in lines[1:]] == ["no time was left"] * 2


def test_what_the_machine_lacks_is_said_before_it_is_tried(run: Callable[..., Any], tmp_path: Path) -> None:
    lacks = {"stages": [["print('never')"]], "packages": ("json", "no_such_module"), "hint": "carry it"}
    files = ("results.jsonl", "kit.tar")
    kit = {"stages": [["print('never')"]], "folder": tmp_path, "files": files, "hint": "bring it"}
    status, lines = run({"serve": lacks, "ok": [["print('here')"]], "peers": kit})
    assert status == 1
    assert lines[1] == "   serve: not run: there is no no_such_module: carry it"
    assert lines[2].startswith(f"   peers: not run: there is no {tmp_path / 'kit.tar'}: bring it")


def test_the_end_says_what_was_running_when_it_was_stopped(tmp_path: Path) -> None:
    program = (
        "import sys; from benchmarks import gpu, gpu_parts\n"
        "sleeps = 'print(12, flush=True); import time; time.sleep(60)'\n"
        "command = gpu_parts.Command((sys.executable, '-S', '-c', sleeps), 50)\n"
        "gpu.PARTS = {'long': lambda _: gpu_parts.Part('', [[command]])}\n"
        f"sys.exit(gpu.main(['--out', {str(tmp_path)!r}, 'long']))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "12":
            pass
        process.send_signal(signal.SIGTERM)
        lines = process.stdout.read().splitlines()
    assert process.returncode == 1
    assert lines[-2:] == ["   the run was stopped from outside", lines[-1]]
    assert lines[-1].startswith("   interrupted: python -S -c ")


def test_an_unknown_part_is_refused(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        script("gpu").main(["everything"])
    assert "there is no part everything: there are correctness, decode, " in capsys.readouterr().err


def test_the_shell_script_says_what_there_is(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run([root / "benchmarks/gpu.sh", "--help"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "correctness" in done.stdout
