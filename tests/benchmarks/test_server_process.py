import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks import server_process as process

SERVER = """
import sys
from http.server import HTTPServer, SimpleHTTPRequestHandler
server = HTTPServer(("127.0.0.1", int(sys.argv[1])), SimpleHTTPRequestHandler)
SimpleHTTPRequestHandler.log_message = lambda *_: None
print("listening", flush=True)
server.serve_forever()
"""


def test_it_answers_inside_and_is_gone_after(tmp_path: Path) -> None:
    port = process.free_port()
    url, words = f"http://127.0.0.1:{port}", [sys.executable, "-S", "-c", SERVER, str(port)]
    with process.running(words, url, "/", tmp_path / "out", 60, os.environ) as pid:
        assert process.cpu_seconds([pid]) > 0
        assert httpx.get(url).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(url)
    assert process.tail(tmp_path / "out") == "listening"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([sys.executable, "-Sc", "print('no model'); raise SystemExit(7)"], "exited with 7:\nno model"),
        ([sys.executable, "-Sc", "import time; time.sleep(60)"], "not ready after 0 s"),
        (["/no/such/program"], "/no/such/program: No such file"),
    ],
)
def test_what_does_not_start(tmp_path: Path, words: list[str], message: str) -> None:
    patience = 0 if "not ready" in message else 60
    url = f"http://127.0.0.1:{process.free_port()}"
    with (
        pytest.raises(process.ServerError, match=message),
        process.running(words, url, "/health", tmp_path / "out", patience, os.environ),
    ):
        pytest.fail("it is said to be ready")


def test_the_time_of_what_a_process_has_started_counts_too() -> None:
    """Also where it is in a session of its own, as the engine is."""
    work = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True); input()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-Sc', {work!r}], start_new_session=True)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-Sc", parent], **pipes) as started:
        assert started.stdout
        started.stdout.readline()
        assert process.cpu_seconds(process.family(started.pid)) >= 0.2
        started.communicate(b"\n")
