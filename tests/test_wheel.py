"""The wheel holds all that the installed server needs: every module, the demo, the types marker, the licence."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "adapters", "server")
TOP = "__init__.py"  # of the package itself, which is the root of the project


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, so that no build folder of the working tree can lend it files, and without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", TOP):
        shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(out), str(source)], check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return zipfile.ZipFile(built)


def test_every_file_of_the_folders_is_in_it(wheel: zipfile.ZipFile) -> None:
    files = [ROOT / TOP, *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file())]
    expected = {f"peftserve/{path.relative_to(ROOT).as_posix()}" for path in files if "__pycache__" not in path.parts}
    found = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert found == expected


def test_types_license_and_command(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert {f"peftserve/{folder}/py.typed" for folder in FOLDERS} <= {*names}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    entry_points = next(name for name in names if name.endswith("/entry_points.txt"))
    assert b"peftserve = peftserve.server.cli.main:main" in wheel.read(entry_points)


def test_nothing_else_is_at_the_top(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"peftserve"}


PROGRAM = """
import sys
from pathlib import Path
import peftserve
from peftserve import EngineConfig, SamplingParams, __version__
assert Path(peftserve.__file__).is_relative_to(Path.cwd()), peftserve.__file__
assert __version__ and EngineConfig("m").max_loras and SamplingParams().max_tokens
assert "torch" not in sys.modules
from peftserve import LLM, Engine
assert Engine.__module__ == "peftserve.server.engine.engine"
assert Path(sys.modules[LLM.__module__].__file__).is_relative_to(Path.cwd())
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_HELD_OUT, DEMO_MODEL
assert DEMO_MODEL.is_relative_to(Path.cwd()), DEMO_MODEL
assert len(DEMO_ADAPTERS) >= 5
for file in (DEMO_HELD_OUT, *(folder / "adapter_config.json" for folder in DEMO_ADAPTERS.values())):
    assert file.is_file(), file
"""


@pytest.mark.slow
def test_where_it_is_unpacked_it_is_the_package_and_brings_the_demo(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True, env=environ)
