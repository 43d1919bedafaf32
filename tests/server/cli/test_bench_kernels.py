import json
from pathlib import Path

import pytest

from peftserve.server.cli.main import main

QUICK = ["bench", "kernels", "--device", "cpu", "--quick", "--layers", "1", "--phase", "decode", "--rounds", "1"]


def test_a_run_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--only", "loop", "--out", str(tmp_path), "--peers", str(tmp_path)]) == 0
    assert "ours / floor" in capsys.readouterr().out
    report = json.loads((tmp_path / "kernels_cpu_smollm-135m_decode.json").read_text())
    assert report["command"].startswith("peftserve bench kernels --device cpu --dtype float32 --shape smollm-135m")
    assert report["points"][0]["outcomes"]["loop"]["us"] > 0


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "--only", "nobody", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "peftserve: --only: no contender is named nobody\n"
