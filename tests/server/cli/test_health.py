import socket
from pathlib import Path
from typing import Any

import pytest

from peftserve.server.cli import health


def test_it_follows_the_port_wherever_that_was_chosen(stub: Any, tmp_path: Path) -> None:
    port = str(stub.server_port)
    stub.answers["GET", "/health/live"] = 200, {}
    stub.answers["GET", "/llm/health/live"] = 200, {}
    (tmp_path / "settings.toml").write_text(f"port = {port}\nroot-path = '/llm'\n")
    started: list[tuple[list[str], dict[str, str]]] = [
        (["/usr/bin/python", "/usr/bin/peftserve", "serve", "--port", port], {"PEFTSERVE_HOST": "0.0.0.0"}),
        (["docker-init", "--", "peftserve", "serve"], {"PEFTSERVE_PORT": port}),
        (["peftserve", "serve", "--config", str(tmp_path / "settings.toml")], {}),
    ]
    for words, environ in started:
        assert health.is_alive(health.settings_of(words, environ))
    assert [asked.path for asked in stub.asked] == ["/health/live", "/health/live", "/llm/health/live"]


def test_it_fails_where_nobody_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        (tmp_path / "cmdline").write_bytes(b"peftserve\0serve\0--port\0%d\0" % taken.getsockname()[1])
        monkeypatch.setattr(health, "FIRST_PROCESS", tmp_path / "cmdline")
        assert health.main() == 1
