"""The folder between the processes of one server: gone when the server has ended, or at the next start."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from peftserve.server.api.processes.forwarding import PRIMARY
from peftserve.server.api.processes.private_folder import private_folder
from peftserve.server.api.processes.resources import listen_in

SERVER = """
import os, signal
from peftserve.server.api.processes.private_folder import private_folder
from peftserve.server.api.processes.resources import listen_in
with private_folder() as folder, listen_in(folder):
    print(folder, flush=True)
    input()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def temporary(monkeypatch):
    folder = tempfile.mkdtemp(dir="/tmp")  # with a short path
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield Path(folder)
    shutil.rmtree(folder)


def test_what_a_killed_server_leaves_goes_at_the_next_start_and_nothing_else_does(temporary):
    others = [temporary / name for name in ("peftserve-empty", "peftserve-data", "other")]
    for other in others:
        other.mkdir()
    (temporary / "peftserve-data" / PRIMARY).write_text("no socket")
    (temporary / "peftserve-link").symlink_to("other")
    with listen_in(temporary / "other"):
        pass
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as process:
        killed = Path(process.stdout.readline().strip())
        with private_folder() as running, listen_in(running):
            assert killed.is_dir()  # its server still runs
        assert not running.exists()
        process.communicate("\n")
    assert killed.is_dir()
    with private_folder() as running, listen_in(running):
        assert not killed.exists()
        with private_folder() as second:
            assert (running / PRIMARY).is_socket()
            assert second != running
    assert sorted(temporary.iterdir()) == sorted([*others, temporary / "peftserve-link"])
    assert (temporary / "other" / PRIMARY).is_socket()


def test_a_path_too_long_for_a_socket_is_not_taken(temporary, monkeypatch):
    deep = temporary / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with private_folder() as folder, listen_in(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not list(deep.iterdir())
