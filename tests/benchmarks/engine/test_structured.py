import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_steps_with_and_without_forms_take_turns(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    structured, out = script("engine.structured"), tmp_path / "results.jsonl"
    asked, timed = list[int](), structured.steps_ms
    monkeypatch.setattr(structured, "steps_ms", lambda *given: asked.append(given[3]) or timed(*given))
    tiny = ["--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--layers", "1", "--context", "4"]
    sizes = ["--sequences", "3", "--held", "2", "--rounds", "2", "--steps", "2", "--temperature", "1"]
    schemas = ["--schemas", "2", "--schema-bytes", "500", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["structured.py", *tiny, *sizes, *schemas])
    assert structured.main() == 0
    assert asked == [2, 0, 0, 2, 2, 0]
    _, first, steps = script("records").read(out)
    assert first["bytes"] >= 500
    assert min(first["check_ms"], first["compile_ms"]) > 0
    assert min(steps["plain_ms"], steps["held_ms"], steps["ratio"]) > 0
    assert [len(taken) for taken in steps["rounds_held_ms"]] == [2, 2]
    assert "least ratio" in capsys.readouterr().out
