import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[[str], ModuleType]
TINY = ["--device", "cpu", "--dtype", "float32", "--shape", "tiny", "--layers", "1", "--context", "4"]


def test_what_needs_no_adapters_comes_before_they_are_loaded(script: Script) -> None:
    decode = script("engine.decode_step")
    points = [(p.sequences, p.adapters, p.loaded) for p in decode.points([1, 16], 8)]
    assert points == [(1, 0, 0), (16, 0, 0), (1, 0, 8), (1, 1, 8), (16, 0, 8), (16, 1, 8), (16, 8, 8)]
    assert [p.loaded for p in decode.points([1], 0)] == [0]


def test_each_point_is_written_when_it_is_known(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode, out, written = script("engine.decode_step"), tmp_path / "results.jsonl", list[int]()
    measured = decode.measured
    monkeypatch.setattr(
        decode, "measured", lambda *given: written.append(len(list(script("records").read(out)))) or measured(*given)
    )
    sizes = ["--sequences", "2", "--adapters", "2", "--rounds", "1", "--steps", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["decode_step.py", *TINY, *sizes])
    assert decode.main() == 0
    assert written == [1, 3, 4, 5]
    found = list(script("records").read(out))
    assert [record["kind"] for record in found] == ["machine", "decode", "load", "decode", "decode", "decode"]
    for record in found:
        if record["kind"] == "decode":
            assert min(record["step_ms"], record["floor_ms"]) > 0
            assert record["host_ms"]["step"] >= record["host_ms"]["launch"] > 0
            assert record["device"] is None
    assert [record["adapters"] for record in found if record["kind"] == "decode"] == [0, 0, 1, 2]
    assert "2        2      2" in capsys.readouterr().out
