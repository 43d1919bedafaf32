"""constraints.txt resolves by the index's own metadata, whatever wheels lie on this machine."""

import importlib.util
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pins() -> ModuleType:
    """Import docs/pins.py, or skip where no index answers."""
    spec = importlib.util.spec_from_file_location("pins", ROOT / "docs" / "pins.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = [sys.executable, "-m", "uv", "pip", "compile", "--no-config", "-"]
    asked = subprocess.run(command, input="iniconfig", capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"no package index can be reached from here, so the pins were not resolved: {asked.stderr[-300:]}")
    return module


@pytest.mark.slow
def test_every_python_and_platform(pins: ModuleType) -> None:
    """And every package is pinned, so that what was tested is what is installed, today and in a year."""
    pinned = {line.split("==")[0] for line in pins.CONSTRAINTS.read_text().splitlines() if "==" in line}
    targets = [*((python, pins.LINUX) for python in pins.PYTHONS), *((pins.OLDEST, other) for other in pins.PLATFORMS)]
    targets = list(dict.fromkeys(targets))
    with ThreadPoolExecutor(len(targets)) as pool:  # each waits for the index
        answers = list(pool.map(lambda target: pins.resolve(*target), targets))
    for (_, platform), answer in zip(targets, answers, strict=True):
        resolved = dict(line.split("==") for line in answer.splitlines())
        assert resolved.keys() <= pinned
        assert resolved["torch"] == "2.13.0"
        assert ("triton" in resolved) == ("nvidia-cublas" in resolved) == (platform != pins.MAC)


@pytest.mark.slow
def test_a_build_of_torch_without_cuda(pins: ModuleType, tmp_path: Path) -> None:
    """As an index of CPU builds has it: the same version, and nothing of NVIDIA's behind it."""
    version = "2.13.0+cpu"
    needs = ("filelock", "typing-extensions>=4.10.0", "sympy>=1.13.3", "networkx>=2.5.1", "jinja2", "fsspec>=0.8.5")
    metadata = [
        f"Metadata-Version: 2.1\nName: torch\nVersion: {version}",
        *(f"Requires-Dist: {need}" for need in needs),
    ]
    with zipfile.ZipFile(tmp_path / f"torch-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"torch-{version}.dist-info/METADATA", "\n".join(metadata) + "\n")
        wheel.writestr(
            f"torch-{version}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"torch-{version}.dist-info/RECORD", "")
    resolved = pins.resolve(pins.PYTHONS[-1], pins.LINUX, "--find-links", str(tmp_path)).splitlines()
    assert f"torch=={version}" in resolved
    assert not any(line.startswith("nvidia-") for line in resolved)
