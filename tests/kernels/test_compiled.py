import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of a multiprocessor's shared memory. sm_80's code also runs on sm_86 and sm_89, which have 99 KiB."""
OPS = {"rotation", "pairs", "sparse", "kronecker"}
REGISTERS = {"sm_80": 1 << 16, "sm_90": 1 << 16, "sm_100": 1 << 16, "gfx942": 4 * 512 * 64}
"""Of a multiprocessor."""


@pytest.fixture(scope="module")
def compiled(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Compile all kernels, or find them in the cache, under a hash of all that goes into them and of triton itself."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    cache = getattr(pytestconfig, "cache", None)  # not where pytest is told to keep nothing
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton") if cache is None else cache.mkdir("triton"))
    command = [sys.executable, "-m", "tests.kernels.compile_kernels"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("target", SHARED)
def test_what_is_shipped_spills_nothing_and_fits(compiled: list[dict[str, Any]], target: str) -> None:
    found = [entry for entry in compiled if entry["target"] == target]
    modes = {"shrink", "expand", "gather", "lists"}
    others = {"attention 128", "argmax", "primitives", "experts shrink", "experts expand", "experts sort"}
    assert {entry["mode"] for entry in found} == modes | others
    own = {entry["blocks"] for entry in found if entry["mode"] in modes}
    assert {"rows apart", "rows in tiles", "lists"} <= own
    for entry in found:
        assert entry["spilled"] == 0, entry
        assert entry["programs"] * entry["shared"] <= SHARED[target], entry
        assert entry["programs"] * entry["threads"] * entry["registers"] <= REGISTERS[target], entry
