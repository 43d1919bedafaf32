import json
import queue
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Script = Callable[[str], ModuleType]
PATIENCE = 60.0
CHILD = """
import json, sys, time
print("what a library prints")
print(json.dumps({"start": True}), flush=True)
for name in sys.argv[1:]:
    if name == "stalls":
        print(name, flush=True)
        time.sleep(600)
    if name == "ends":
        sys.exit(3)
    said = {"problem": "refused"} if name == "fails" else {"step_ms": 1}
    print(json.dumps({"method": name, **said}), flush=True)
"""


@pytest.fixture
def clock(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time go by only where a child stalls: however slow the machine is, whoever does not stall is in time."""
    now = [0.0]

    class Lines(queue.Queue[str | None]):
        def get(self, block: bool = True, timeout: float | None = None) -> str | None:
            text = super().get(timeout=PATIENCE)
            if text != "stalls\n":
                return text
            assert timeout is not None
            now[0] += timeout + 0.01
            raise queue.Empty

    main = script("methods.main")
    monkeypatch.setattr(main, "queue", SimpleNamespace(Queue=Lines, Empty=queue.Empty))
    monkeypatch.setattr(main, "time", SimpleNamespace(monotonic=lambda: now[0]))


@pytest.fixture
def supervise(
    script: Script, clock: None, tmp_path: Path
) -> Callable[..., tuple[list[dict[str, Any]], list[Sequence[str]]]]:
    (tmp_path / "child.py").write_text(CHILD)
    started = list[Sequence[str]]()

    def command(names: Sequence[str]) -> list[str]:
        started.append(list(names))
        return [sys.executable, "-S", str(tmp_path / "child.py"), *names]

    def run(names: Sequence[str], limit: float = 5.0, seconds: float = 60.0) -> Any:
        found = list(script("methods.main").supervised(names, command, Namespace(limit=limit, seconds=seconds)))
        return found, started

    return run


def test_whoever_stalls_or_ends_the_process_costs_nobody_else(supervise: Callable[..., Any]) -> None:
    found, started = supervise(["LoRA", "a", "stalls", "b", "fails", "ends", "c"], limit=1.0)
    assert [record["method"] for record in found] == ["LoRA", "a", "stalls", "b", "fails", "ends", "c"]
    problems = {record["method"]: record["problem"] for record in found if "problem" in record}
    assert problems == {"stalls": "stopped after 1 s", "fails": "refused", "ends": "the process ended with 3"}
    assert started[1:] == [["LoRA", "b", "fails", "ends", "c"], ["LoRA", "c"]]


def test_those_that_find_no_time_are_named(supervise: Callable[..., Any]) -> None:
    found, _ = supervise(["LoRA", "stalls", "b"], limit=30.0, seconds=2.0)
    assert [record.get("problem") for record in found] == [None, "no time was left", "no time was left"]


def test_an_unknown_method_is_refused(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("methods.main").main(["--only", "LoRA,nothing"]) == 2
    assert "there is no method nothing: there are LoRA, " in capsys.readouterr().err


def test_a_line_for_each(script: Script) -> None:
    line = script("methods.main").line
    assert line({"method": "IA3", "step_ms": 2.0, "beside_lora": 0.5, "made_s": 1.0}).split()[:5] == [
        "IA3", "2.000", "ms", "a", "step",
    ]  # fmt: skip
    assert line({"method": "IA3", "problem": "stopped after 30 s"}).endswith("stopped after 30 s")


def test_lora_is_first_and_every_configuration_is_one_of_peft(script: Script) -> None:
    catalog = script("methods.catalog").CATALOG
    assert next(iter(catalog)) == script("methods.main").LORA
    kinds = {name: make().peft_type for name, make in catalog.items()}
    assert len(set(kinds.values())) >= 20


@pytest.mark.slow
def test_methods_are_measured_beside_lora(script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In processes of their own, with the engine."""
    out = tmp_path / "results.jsonl"
    sizes = ["--device", "cpu", "--shape", "tiny", "--layers", "1", "--dtype", "float32", "--rounds", "2"]
    patient = ["--limit", "200"]  # of which a quiet machine takes 5
    assert script("methods.main").main([*sizes, *patient, "--only", "LoRA,IA3", "--out", str(out)]) == 0
    records = list(script("records").read(out))
    assert [record["method"] for record in records] == ["LoRA", "IA3"]
    for record in records:
        assert len(record["rounds_ms"]) == 2
        assert record["beside_lora"] > 0
    assert json.dumps(records[0]) in out.read_text()
    assert capsys.readouterr().out.count("x LoRA") == 2
