import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
"""Bytes of shared memory that a program may have. sm_80's code also runs on sm_86 and sm_89, which have 99 KiB."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | int]]:
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("target", SHARED)
def test_every_kernel_compiles_within_the_registers_and_shared_memory(
    compiled: list[dict[str, str | int]], target: str
) -> None:
    found = [entry for entry in compiled if entry["target"] == target]
    assert {str(entry["kernel"]).split()[0] for entry in found} == {"shrink", "gather", "expand"}
    assert not [entry for entry in found if entry["spilled"] or int(entry["shared"]) > SHARED[target]]
