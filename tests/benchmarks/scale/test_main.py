"""A run is printed, written, taken in the place of its like, and drawn."""

import json
from pathlib import Path

import pytest

from benchmarks.scale.main import main

SMALL = ["--replicas", "4", "--adapters", "40", "--requests", "300", "--rates", "4,8", "--traces", "steady"]


def test_runs_are_written_once_each_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scale.json"
    for _ in range(2):
        main([*SMALL, "--policies", "hash,shipped", "--out", str(out)])
    found = json.loads(out.read_text())
    assert len(found["runs"]) == 4
    for run in found["runs"]:
        figures = run["figures"]
        assert figures["ttft_p50"] <= figures["ttft_p90"] <= figures["ttft_p99"]
        assert sum(figures[f"from_{where}"] for where in ("device", "host", "disk", "afar")) == pytest.approx(
            1, abs=1e-3
        )
        assert figures["busy_per_1000"] > 0
    assert "shipped" in capsys.readouterr().out
    main(["--out", str(out), "--plot", str(tmp_path)])
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_policy_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*SMALL, "--policies", "hash,luck"])
    assert "'luck' is none of two choices, hash" in capsys.readouterr().err
