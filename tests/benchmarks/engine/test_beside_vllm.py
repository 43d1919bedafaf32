"""The table is made from lines as vLLM's script wrote them on an H200, and from ours."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Script = Callable[[str], ModuleType]
VLLM: list[dict[str, Any]] = [
    {"engine": "base", "kind": "decode", "n": 16, "adapters": 0, "step_ms": 1.712, "floor_ms": 1.1325},
    {"engine": "base", "kind": "prefill", "prompts": 16, "tokens": 8192, "adapters": 0, "s": 0.04664},
    {"engine": "base", "kind": "gpu_time", "n": 16, "adapters": 0, "gpu_busy_ms": 1.5291},
    {"engine": "lora", "kind": "check", "ok": True},
    {"engine": "lora", "kind": "decode", "n": 16, "adapters": 0, "step_ms": 2.1948, "floor_ms": 1.1325},
    {"engine": "lora", "kind": "decode", "n": 16, "adapters": 16, "step_ms": 3.4361, "floor_ms": 1.2111},
    {"engine": "lora", "kind": "gpu_time", "n": 16, "adapters": 16, "gpu_busy_ms": 3.5141},
    {"engine": "lora", "kind": "gpu_time", "n": 64, "adapters": 0, "error": "no pure decode steps"},
    {"kind": "process", "engine": "base", "rc": 0, "seconds": 78.7},
]


def decoded(adapters: int, loaded: int, step_ms: float, **more: Any) -> dict[str, Any]:
    made = {"part": "decode", "kind": "decode", "layers": 8, "sequences": 16, "adapters": adapters, "loaded": loaded}
    return {**made, "step_ms": step_ms, "floor_ms": 1.0, "device": {"busy_ms": step_ms - 0.1}, **more}


def of_vllm(*more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**record, "part": "vllm"} for record in (*VLLM, *more)]


def rows(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines if line.split() and line.split()[0].isdigit()]


def test_both_are_side_by_side_as_times_of_one_floor(script: Script) -> None:
    own = [decoded(0, 0, 1.2), decoded(0, 64, 1.3), decoded(16, 64, 1.7), decoded(0, 0, 9.0, layers=32)]
    prompts = {"part": "prefill", "kind": "prefill", "layers": 8, "prompts": 16, "tokens": 512, "adapters": 0}
    own += [{**prompts, "ms": 40.0, "floor_ms": 32.0, "device": None}]
    none, each, prefill = rows(script("engine.beside_vllm").table([*of_vllm(), *own]))
    assert none[:3] == ["16", "0", "1.000"]
    assert " ".join(none[3:]) == "1.20 (1.10) 1.20 x 1.30 (1.20) 1.30 x 1.71 (1.53) 1.71 x 2.19 2.19 x 1.43 / 1.69"
    assert " ".join(each[3:]) == "1.70 (1.60) 1.70 x 1.70 (1.60) 1.70 x - 3.44 (3.51) 3.44 x 2.02"
    assert " ".join(prefill[3:]) == "40.00 1.25 x 205k/s 46.64 1.46 x 176k/s - 1.17"


def test_one_engine_alone_has_its_own_floor(script: Script) -> None:
    vllm = rows(script("engine.beside_vllm").table(of_vllm()))
    assert " ".join(vllm[0]) == "16 0 1.133 - - 1.71 (1.53) 1.51 x 2.19 1.94 x"
    ours = rows(script("engine.beside_vllm").table([decoded(0, 0, 1.2)]))
    assert " ".join(ours[0]) == "16 0 1.000 1.20 (1.10) 1.20 x - - -"


def test_what_was_measured_again_counts_as_it_was_last(script: Script) -> None:
    lines = script("engine.beside_vllm").table([decoded(0, 0, 5.0), decoded(0, 0, 1.2)])
    assert rows(lines)[0][3] == "1.20"


def test_a_run_that_was_not_right_is_said_first(script: Script) -> None:
    table = script("engine.beside_vllm").table
    assert "vLLM's adapters were not checked" in table([])
    wrong = [{"part": "vllm", "kind": "check", "ok": False}]
    assert "vLLM's adapters changed no token: its figures say nothing of adapters" in table(wrong)
    failed = of_vllm({"kind": "skipped", "what": "decode"}, {"kind": "process", "engine": "lora", "rc": 1})
    assert sum(line.startswith("vLLM: {") for line in table(failed)) == 2


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    folder = tmp_path / "kit"
    folder.mkdir()
    (folder / "unpack.sh").write_text('mkdir -p "$VKIT_DIR" && echo unpacked > "$VKIT_DIR/there"\n')
    (folder / "probe.py").write_text('import json\nprint(json.dumps({"kind": "probe", "ok": True}))\n')
    (folder / "vllm_e2e.py").write_text(
        "import json, os, sys\n"
        'print("a warning")\n'
        'assert os.path.exists(os.environ["VKIT"] + "/there")\n'
        'print(json.dumps({"kind": "decode", "n": 1, "arguments": sys.argv[1:], "path": os.environ["PYTHONPATH"]}))\n'
    )
    return folder


def test_the_kit_runs_by_itself_and_its_lines_are_kept(
    script: Script, kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.jsonl"
    given = ["beside_vllm.py", "run", "--kit", str(kit), "--results", str(results), "--total", "99"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    assert script("engine.beside_vllm").main() == 0
    probe, decode = script("records").read(results)
    assert probe == {"kind": "probe", "ok": True, "part": "vllm"}
    assert decode["arguments"] == ["--total=99"]
    assert "/ours" not in decode["path"]
    assert "a warning" in capfd.readouterr().out


def test_a_step_of_the_kit_that_fails_ends_it(script: Script, kit: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    (kit / "probe.py").write_text("raise SystemExit(7)\n")
    assert script("engine.beside_vllm").run(kit, results, 99) == 1
    assert list(script("records").read(results)) == [
        {"kind": "ended", "command": "probe.py", "code": 7, "part": "vllm"}
    ]


def test_a_point_that_was_left_out_is_a_failure(script: Script, kit: Path, tmp_path: Path) -> None:
    (kit / "vllm_e2e.py").write_text('print(\'{"kind": "skipped", "what": "decode"}\')\n')
    assert script("engine.beside_vllm").run(kit, tmp_path / "results.jsonl", 99) == 1


def test_the_kit_must_be_named(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["beside_vllm.py", "run", "--results", str(tmp_path / "results.jsonl")])
    with pytest.raises(SystemExit, match="2"):
        script("engine.beside_vllm").main()
