"""Replicas on a Ray of this machine, which answer as one engine does without it. Skipped where Ray is not installed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.server_process import family, free_port
from peftserve.server.demo import DEMO_ADAPTERS, DEMO_MODEL

pytest.importorskip("ray", reason="Ray is not installed: pip install 'peftserve[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.cpu_only]

PATIENCE = 300.0  # seconds; Ray and an engine take 20 to start on an idle machine
PROMPT = {"prompt": [20, 30, 40], "temperature": 0, "ignore_eos": True, "return_token_ids": True}
NAMES = ("sql", "title", "snake-ia3")


class Server:
    """A server of the demo's base, without its adapters, by any command of ours."""

    def __init__(self, folder, *words):
        port = free_port()
        command = [sys.executable, "-m", "peftserve.server.cli.main", *words, str(DEMO_MODEL), "--port", str(port)]
        command += ["--state-dir", str(folder / "state"), "--num-threads", "1", "--device", "cpu"]
        self.log = folder / "log"
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)

    def wait_until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def is_ready(self):
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/health").status_code == 200

    def metric(self, name):
        lines = self.http.get("/metrics").text.splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    def upload(self, name, folder):
        files = [("files", (path.name, path.read_bytes())) for path in sorted(Path(folder).glob("adapter_*"))]
        answer = self.http.post("/v1/adapters", data={"name": name}, files=files)
        assert answer.status_code == 201, answer.text

    def tokens(self, model, num_tokens=16):
        answer = self.http.post("/v1/completions", json={**PROMPT, "model": model, "max_tokens": num_tokens})
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["token_ids"]

    def actors(self):
        """Return the processes of Ray that have an engine."""
        return [pid for pid in family(self.process.pid) if b"ServeReplica" in command_line(pid)]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


def command_line(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


@contextlib.contextmanager
def serving(folder, *words):
    folder.mkdir()
    server = Server(folder, *words)
    try:
        server.wait_until(server.is_ready)
        yield server
    finally:
        members = family(server.process.pid)
        server.http.close()
        assert server.stop() == 0, server.log.read_text()
        deadline = time.monotonic() + PATIENCE
        while left := [pid for pid in members if command_line(pid)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    words = ("deploy", "ray", "--replicas", "2", "--cpus-per-replica", "0.5")
    with serving(tmp_path_factory.mktemp("replicas") / "server", *words) as server:
        server.wait_until(lambda: server.metric("peftserve_replicas") == 2)
        yield server


def test_they_answer_as_one_engine_does_streamed_and_not(replicas, tmp_path):
    answers = []
    with serving(tmp_path / "bare", "serve") as bare:
        for server in (bare, replicas):
            for name in NAMES:
                server.upload(name, DEMO_ADAPTERS[name])
            answers.append([server.tokens(name) for name in (*NAMES, DEMO_MODEL.name) for _ in range(4)])
    assert answers[0] == answers[1]
    body = {**PROMPT, "model": "sql", "max_tokens": 16, "stream": True}
    with replicas.http.stream("POST", "/v1/completions", json=body) as response:
        lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    assert len(lines) > 4, "tokens come one after the other"


def test_changes_hold_on_all_replicas_at_once(replicas):
    for content in ("sql", "title", "snake-ia3"):
        replicas.upload("changing", DEMO_ADAPTERS[content])
        replicas.upload(f"same-{content}", DEMO_ADAPTERS[content])
        right = replicas.tokens(f"same-{content}")
        assert replicas.http.put("/v1/default-adapter", json={"adapter": "changing"}).status_code == 200
        assert [replicas.tokens(name) for name in ("changing", "default") for _ in range(4)] == [right] * 8
    assert replicas.http.delete("/v1/adapters/changing").status_code == 200
    gone = [replicas.http.post("/v1/completions", json={**PROMPT, "model": "changing"}) for _ in range(4)]
    assert {answer.status_code for answer in gone} == {404}


def test_another_replica_takes_the_place_of_one_that_is_killed(replicas):
    replicas.upload("kept", DEMO_ADAPTERS["sql"])
    right = replicas.tokens("kept")
    os.kill(replicas.actors()[0], signal.SIGKILL)
    replicas.wait_until(lambda: replicas.metric("peftserve_replicas") == 1)
    assert [replicas.tokens("kept") for _ in range(4)] == [right] * 4
    replicas.wait_until(lambda: replicas.metric("peftserve_replicas") == 2)
    assert replicas.tokens("kept") == right


def test_there_are_more_under_load_and_fewer_without_and_no_request_fails(tmp_path):
    words = ("deploy", "ray", "--min-replicas", "1", "--max-replicas", "2", "--cpus-per-replica", "0.5")
    delays = ("--upscale-delay", "0", "--downscale-delay", "0", "--max-running", "8")
    with serving(tmp_path / "scaled", *words, *delays) as server:
        failed, over = [], [threading.Event() for _ in range(12)]

        def ask_on(over):
            while not over.is_set():
                answer = server.http.post("/v1/completions", json={**PROMPT, "max_tokens": 100})
                failed.extend([answer.text] * (answer.status_code != 200))

        clients = [threading.Thread(target=ask_on, args=[end]) for end in over]
        for client in clients:
            client.start()
        try:
            server.wait_until(lambda: server.metric("peftserve_replicas") == 2)
            for end in over[1:]:  # one client goes on while a replica leaves
                end.set()
            server.wait_until(lambda: server.metric("peftserve_replicas") == 1)
        finally:
            for end, client in zip(over, clients, strict=True):
                end.set()
                client.join(PATIENCE)
        assert failed == []
