"""The suite's options: with `--device cuda` what cannot run says why, and slow tests begin or are left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import os, sys
import pytest

def test_where(device):
    print("device", device, os.environ.get("TRITON_INTERPRET"), os.environ.get("CUDA_VISIBLE_DEVICES"))

@pytest.mark.cpu_only("it is small")
def test_small():
    pass

def test_simulated(simulated_cuda):
    pass
"""

SLOW = """
import pytest

@pytest.mark.slow
def test_slow():
    print("slow runs")
"""


def run(tmp_path: Path, *words: str, devices: str) -> str:
    """Run the three tests with this conftest and return what pytest prints. devices: the GPUs that it may see."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "simulated_cuda.py").symlink_to(ROOT / "tests/simulated_cuda.py")
    (tmp_path / "test_it.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON", "PYTEST"))}
    command = [sys.executable, "-m", "pytest", "-rs", "-s", "-p", "no:cacheprovider", str(tmp_path), *words]
    own = {**environment, "CUDA_VISIBLE_DEVICES": devices, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_by_default_no_test_sees_a_gpu(tmp_path: Path) -> None:
    said = run(tmp_path, devices="0")
    assert "device cpu 1 \n" in said
    assert "3 passed" in said


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--device", "cuda"), ("--device=cuda",)])
def test_without_a_gpu_everything_for_one_is_left_out_and_says_why(tmp_path: Path, words: tuple[str, ...]) -> None:
    said = run(tmp_path, *words, devices="")
    assert "3 skipped" in said
    assert "--device cuda: torch sees no GPU" in said
    assert "not with --device cuda: it is small" in said


def test_tests_for_a_gpu_are_compiled(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    said = run(tmp_path, "--device", "cuda", devices="0")
    assert "device cuda None 0\n" in said
    assert "1 passed, 2 skipped" in said
    assert "not with --device cuda: it simulates one" in said


@pytest.mark.slow
def test_files_with_slow_tests_begin_and_slow_tests_can_be_left_out(tmp_path: Path) -> None:
    said = []
    for name, words in (("all", ()), ("fast", ("-m", "not slow"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_last.py").write_text(SLOW)
        said.append(run(tmp_path / name, *words, devices=""))
    assert -1 < said[0].find("slow runs") < said[0].find("device cpu")
    assert "3 passed, 1 deselected" in said[1]
