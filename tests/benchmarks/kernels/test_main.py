import json
from pathlib import Path

import pytest

from benchmarks.kernels.main import run

QUICK = ["--device", "cpu", "--quick", "--layers", "1", "--rounds", "1"]


def test_a_run_prints_a_table_and_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = tmp_path / "none"
    assert run([*QUICK, "--out", str(tmp_path), "--peers", str(peers)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [text.split()[0] for text in printed if " 8-64 " in text] == ["decode", "prefill"]
    assert any(text.startswith("prefill: best peer / ours") for text in printed)
    report = json.loads((tmp_path / "kernels_cpu_smollm-135m.json").read_text())
    assert [point["phase"] for point in report["points"]] == ["decode", "prefill"]
    assert report["points"][0]["outcomes"]["ours"]["error"] < 1e-4
    assert report["machine"]["bandwidth"] > 0
    assert (tmp_path / "kernels_cpu_smollm-135m_prefill.png").exists()


def test_one_phase_has_files_of_its_own_and_time_may_run_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--phase", "decode", "--minutes", "1e-9", "--only", "loop", "--out", str(tmp_path)]
    assert run([*QUICK, *words, "--peers", str(tmp_path)]) == 0
    assert "out of time" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_nobody_of_that_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run([*QUICK, "--only", "nobody", "--out", str(tmp_path)])
    assert stopped.value.code == 2
    assert "nobody" in capsys.readouterr().err
