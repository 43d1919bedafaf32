import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx
import pytest

Script = Callable[[str], ModuleType]


def test_it_answers_inside_and_is_gone_after(
    script: Script, server_command: Callable[..., str], tmp_path: Path
) -> None:
    process = script("server_process")
    port = process.free_port()
    url, words = f"http://127.0.0.1:{port}", shlex.split(server_command("x").format(port=port))
    with process.running(words, url, "/health", tmp_path / "out", 60, os.environ):
        assert httpx.get(url + "/health").status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(url + "/health")
    assert process.tail(tmp_path / "out") == "listening"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([sys.executable, "-Sc", "print('no model'); raise SystemExit(7)"], "exited with 7:\nno model"),
        ([sys.executable, "-Sc", "import time; time.sleep(60)"], "not ready after 0 s"),
        (["/no/such/program"], "/no/such/program: No such file"),
    ],
)
def test_what_does_not_start(script: Script, tmp_path: Path, words: list[str], message: str) -> None:
    process = script("server_process")
    patience = 0 if "not ready" in message else 60
    url = f"http://127.0.0.1:{process.free_port()}"
    with (
        pytest.raises(process.ServerError, match=message),
        process.running(words, url, "/health", tmp_path / "out", patience, os.environ),
    ):
        pytest.fail("it is said to be ready")
