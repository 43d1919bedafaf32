"""Private rooms hold with the oldest and the newest known version of libraries small enough to be had for a test.

The newest are named here, so that what somebody publishes tomorrow changes no result of today: raise them with a
look at what is missing then.

torch is not: its wheels have 800 MB and more, so its rooms are checked with the installed version only, by the tests
beside them. Another library is put into a folder of its own, without what it depends on, and looked at by a process
that finds the rest where this one does. A room of another library is two more rows of `SUPPORTED`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .private_rooms import missing, tables

ROOT = Path(__file__).resolve().parents[1]
TRANSFORMERS = (
    "server/engine/private/transformers_private.py",
    "server/engine/private/older_attention_private.py",
    "server/engine/private/own_experts_private.py",
    "server/engine/private/own_state_private.py",
    "server/api/private/transformers_private.py",
    "server/checkpoint/private/transformers_private.py",
)
UVICORN = ("server/api/private/uvicorn_private.py",)
PROMETHEUS = ("server/api/private/prometheus_private.py",)
OLDEST_TRANSFORMERS = ["transformers==5.17.0", "huggingface-hub>=1.5,<2"]  # which refuses newer hubs
SUPPORTED = [  # rooms, what to install, and whether it is the newest, which has the optional names as well
    pytest.param(TRANSFORMERS, OLDEST_TRANSFORMERS, False, id="oldest-transformers"),
    pytest.param(TRANSFORMERS, ["transformers==5.24.0"], True, id="newest-transformers"),
    pytest.param(UVICORN, ["uvicorn==0.35.0"], False, id="oldest-uvicorn"),
    pytest.param(UVICORN, ["uvicorn==0.54.0"], True, id="newest-uvicorn"),
    pytest.param(PROMETHEUS, ["prometheus-client==0.22.0"], False, id="oldest-prometheus"),
    pytest.param(PROMETHEUS, ["prometheus-client==0.26.0"], True, id="newest-prometheus"),
]


def test_what_is_missing_is_told_with_its_reason() -> None:
    table = {
        "os.path.join": "It is there.",
        "os._gone": "A test. Instead: another test.",
        "hasattr(json.decoder, 'gone')": "A name that is looked for.",
    }
    attribute, looked_for = missing(table)
    assert attribute.startswith("os._gone is missing (AttributeError")
    assert attribute.endswith("What it was for: A test. Instead: another test.")
    assert looked_for.startswith("hasattr(json.decoder, 'gone') is missing (not so)")


def test_tables_are_read_without_an_import(tmp_path: Path) -> None:
    room = tmp_path / "room.py"
    lines = ["from gone import _name", '_WHY = "a reason"', 'NAMES: Mapping[str, str] = {"gone._name": "For " + _WHY}']
    room.write_text("\n".join(lines))
    assert tables(str(room)) == ({"gone._name": "For a reason"}, {})


@pytest.mark.slow
@pytest.mark.timeout(900)  # for what is downloaded
@pytest.mark.parametrize(("rooms", "requirements", "newest"), SUPPORTED)
def test_other_versions(rooms: tuple[str, ...], requirements: list[str], newest: bool, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(tmp_path)]
    installed = subprocess.run([*pip, *requirements], capture_output=True, text=True, check=False)
    if installed.returncode:
        pytest.skip(f"{requirements} cannot be installed from here: {installed.stderr[-300:]}")
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.private_rooms", *rooms, *(["--optional"] if newest else [])]
    looked = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True)
    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert looked.stdout.splitlines() == [f"{room}: all is there, in {tmp_path}" for room in rooms]
