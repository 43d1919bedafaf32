import json
import socket
from pathlib import Path

import pytest

from peftserve.server.cli.main import main


def test_a_machine_that_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--state-dir", str(tmp_path / "new"), "--port", "0", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {one["topic"] for one in found} >= {"python", "torch", "device", "state", "port", "model", "memory"}
    assert not (tmp_path / "new").exists()


def test_what_keeps_a_server_from_starting_is_fatal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        words = ["doctor", "/nonexistent", "--state-dir", str(tmp_path / "file" / "state"), "--port", port]
        assert main([*words, "--device", "cpu"]) == 1
    fatal = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FATAL")]
    assert fatal == ["state", "port", "model"]
