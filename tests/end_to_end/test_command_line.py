"""The commands that talk to a server, run as people run them, against a real one: in a terminal and in pipes."""

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL

COMMAND = [sys.executable, "-m", "peftserve.server.cli.main"]
PATIENCE = 120.0
KEY = "sk-only-for-this-test"


@pytest.fixture(scope="module")
def server(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("command-line")
    adapters = [f"--adapter={name}={DEMO_ADAPTERS[name]}" for name in ("sql", "snake")]
    flags = [*adapters, "--served-model-name", "demo", "--api-key", KEY, "--api-key", "another", "--device", "cpu"]
    running = oracle.RunningServer.start(DEMO_MODEL, folder / "state", folder / "log", *flags)
    yield running
    running.stop()


@pytest.fixture
def environ(server: Any) -> dict[str, str]:
    return {**os.environ, "PEFTSERVE_URL": f"{server.url}/", "PEFTSERVE_API_KEY": KEY, "NO_PROXY": "*", "TERM": "xterm"}


def run(environ: dict[str, str], *words: str, text: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*COMMAND, *words], env=environ, input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def _heed_interrupts() -> None:
    """Let a program be interrupted also where the tests run in the background of a shell, which ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Terminal:
    """A program in a terminal of its own, ended with the block that it is the context of."""

    def __init__(self, environ: dict[str, str], *words: str) -> None:
        self._end, end = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            env=environ,
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
            preexec_fn=_heed_interrupts,
        )
        os.close(end)
        self._shown = ""

    def type(self, line: str) -> None:
        os.write(self._end, f"{line}\n".encode())

    def wait_for(self, *texts: str, patience: float = PATIENCE) -> str:
        """Return what was shown until all texts have been, and forget it."""
        deadline = time.monotonic() + patience
        while not all(text in self._shown for text in texts):
            assert time.monotonic() < deadline, f"waited in vain for {texts}: {self._shown!r}"
            if select.select([self._end], [], [], 1.0)[0]:
                self._shown += os.read(self._end, 65536).decode(errors="replace")
        shown, self._shown = self._shown, ""
        return shown

    def interrupt(self, *texts: str) -> str:
        """Press ^C until texts are shown: Python misses one that comes just before readline waits for a key."""
        for patience in (2, 10, 30, PATIENCE):
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(AssertionError):
                return self.wait_for(*texts, patience=patience)
        raise AssertionError(f"interrupted in vain for {texts}: {self._shown!r}")

    def code(self) -> int:
        """Return what the program ends with."""
        return self.process.wait(PATIENCE)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


def test_keys_are_asked_for_and_never_logged(server: Any, environ: dict[str, str]) -> None:
    refused = run({**environ, "PEFTSERVE_API_KEY": ""}, "models")
    assert refused.returncode == 1
    assert refused.stderr.startswith("peftserve: ")
    assert run({**environ, "PEFTSERVE_API_KEY": "another"}, "models").returncode == 0
    log = server.log.read_text()
    assert KEY not in log
    assert "it/s" not in log  # and no bars of libraries, where there is no terminal
    assert "%|" not in log


def test_models_and_top(environ: dict[str, str]) -> None:
    shown = run(environ, "models")
    assert [line.split()[:2] for line in shown.stdout.splitlines()[1:]] == [
        ["demo", "base"],
        ["snake", "adapter"],
        ["sql", "adapter"],
    ]
    assert {model["id"] for model in json.loads(run(environ, "models", "--json").stdout)} == {"demo", "snake", "sql"}
    once = run(environ, "top", "--once", "--interval", "0.2")
    assert once.returncode == 0, once.stderr
    for word in ("tokens/s", "first token", "KV cache", "sql", "snake"):
        assert word in once.stdout
    assert "\x1b" not in once.stdout


def test_a_pipe_is_one_prompt(environ: dict[str, str]) -> None:
    words = ["chat", "sql", "--temperature", "0", "--max-tokens", "12"]
    one, other = (run(environ, *words, text="show the names of all users\n") for _ in range(2))
    assert one.returncode == 0, one.stderr
    assert one.stdout.strip()
    assert one.stdout == other.stdout
    assert run(environ, "chat", text="").returncode == 2
    missing = run(environ, "chat", "nobody", text="x")
    assert missing.returncode == 1
    assert "nobody" in missing.stderr


def test_a_reader_that_leaves_ends_a_command_quietly(environ: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        left = subprocess.run(
            [*COMMAND, "adapters", "list"],
            env=environ,
            stdout=gone,
            stderr=subprocess.PIPE,
            timeout=PATIENCE,
            check=False,
        )
    assert (left.returncode, left.stderr) == (141, b"")


def test_a_conversation_in_a_terminal(environ: dict[str, str]) -> None:
    with Terminal(environ, "chat", "sql", "--temperature", "0", "--max-tokens", "12") as chat:
        chat.wait_for("sql answers, of: demo, ", ">>> ")
        chat.type('"""show')
        chat.type('all"""')
        chat.wait_for("... ", ">>> ")
        chat.type("/adaptor snake")
        chat.wait_for("is /adapter meant?", ">>> ")
        chat.type("/mix sql=0.5 snake=0.5")
        chat.wait_for("0.5 sql + 0.5 snake answers", ">>> ")
        chat.type("/compare sql snake")
        chat.wait_for("sql, snake answer each prompt", ">>> ")
        chat.type("HelloWorld")
        shown = chat.wait_for(" sql ", " snake ", "╯", ">>> ")
        assert "╭" in shown
        chat.interrupt("/quit or ^D ends", ">>> ")
        chat.type("/quit")
        assert chat.code() == 0


def test_an_interrupt_ends_the_answer_and_not_the_program(environ: dict[str, str]) -> None:
    with Terminal(environ, "chat", "demo", "--temperature", "1", "--max-tokens", "400") as chat:
        chat.wait_for(">>> ")
        chat.type("/temp 2")
        chat.wait_for("temperature 2", ">>> ")
        chat.type("/help")
        chat.wait_for("/compare", ">>> ")
        chat.type("a")
        chat.interrupt(">>> ")
        chat.type("/bye")
        assert chat.code() == 0


def test_a_busy_port_is_one_line(server: Any, tmp_path: Path) -> None:
    port = server.url.rpartition(":")[2]
    failed = run({**os.environ}, "serve", "--port", port, "--state-dir", str(tmp_path))
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    assert "Address already in use" in failed.stderr
