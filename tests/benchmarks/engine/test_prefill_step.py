import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]


def test_prompts_with_and_without_adapters(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.jsonl"
    sizes = ["--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--layers", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["prefill_step.py", *sizes, "--prompts", "8x6", "2x9", "--out", str(out)])
    assert script("engine.prefill_step").main() == 0
    found = [record for record in script("records").read(out) if record["kind"] == "prefill"]
    assert [(r["prompts"], r["tokens"], r["adapters"]) for r in found] == [
        (8, 6, 0), (8, 6, 1), (8, 6, 8), (2, 9, 0), (2, 9, 1),
    ]  # fmt: skip
    assert all(min(r["ms"], r["floor_ms"]) > 0 for r in found)
    assert "8x6" in capsys.readouterr().out
