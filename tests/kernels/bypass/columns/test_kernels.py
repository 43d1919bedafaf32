"""The kernels of spare columns are compiled for every GPU that is served, and spill nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}


@pytest.mark.slow
def test_what_is_shipped_spills_nothing(pytestconfig: pytest.Config, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cache = getattr(pytestconfig, "cache", None)  # not where pytest is told to keep nothing
    env["TRITON_CACHE_DIR"] = str(tmp_path if cache is None else cache.mkdir("triton"))
    command = [sys.executable, "-m", "tests.kernels.bypass.columns.compile_columns"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert {entry["target"] for entry in found} == SHARED.keys()
    for entry in found:
        assert entry["spilled"] == 0, entry
        assert entry["shared"] <= SHARED[entry["target"]], entry
