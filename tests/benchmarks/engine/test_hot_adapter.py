import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


def test_base_and_adapters_are_measured_at_every_size(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hot, out = script("engine.hot_adapter"), tmp_path / "results.jsonl"
    tiny = ["--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--layers", "1", "--context", "4"]
    sizes = ["--ranks", "2", "4", "--rows", "1", "2", "--prompt", "8", "--rounds", "1", "--steps", "2"]
    monkeypatch.setattr(sys, "argv", ["hot_adapter.py", *tiny, *sizes, "--out", str(out)])
    assert hot.main() == 0
    about, *found = script("records").read(out)
    assert about["copy_bytes"] == (2 * 256 * 256 + 2 * 256 * 64 + 3 * 256 * 512) * 4
    assert set(about["switch_ms"]) == {"2", "4"}
    works = ["decode 1", "decode 2", "prefill 8"]
    assert [(one["kind"], one["rank"]) for one in found] == [(work, rank) for work in works for rank in (2, 4)]
    assert all(min(one["base_ms"], one["adapter_ms"]) > 0 for one in found)
    assert "prefill 8" in capsys.readouterr().out
