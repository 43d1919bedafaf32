"""A real server in two processes of its own, over a tiny Llama, with eight adapters and PEFT's answers."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

PATIENCE = 60.0
"""Seconds after which something that should happen at once on a machine that does nothing else has failed."""


@dataclass
class Server:
    """`peftserve serve` with its engine."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def wait_until_ready(self) -> None:
        wait_for(self._is_ready, f"the server at {self.url} to be ready")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, f"the server has exited:\n{self.log.read_text()}"
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def engine_pid(self) -> int:
        """Of the server's child that runs the engine's module."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        children = [child for task in tasks for child in (task / "children").read_text().split()]
        return next(int(c) for c in children if b"server.engine" in Path(f"/proc/{c}/cmdline").read_bytes())

    def upload(self, name: str, adapter: Path) -> httpx.Response:
        return self.client.post("/v1/adapters", data={"name": name}, files=adapter_files(adapter))

    def metric(self, name: str) -> float:
        """Sum over the metric's series."""
        lines = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return sum(map(float, lines))

    def kill(self) -> None:
        """kill -9 of both processes at once."""
        engine = self.engine_pid()
        self.process.kill()
        os.kill(engine, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM, as an operator does; returns the exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()  # the engine ends with its parent


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s in vain for {what}"
        time.sleep(0.02)


def adapter_files(adapter: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """A checkpoint as the parts of a multipart upload."""
    return [
        ("files", (name, (adapter / name).read_bytes()))
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class World:
    """A model, its adapters, PEFT's answers, and a way to serve it. Names of adapters are those of their folders."""

    model: Path
    adapters: list[Path]
    reference: Any
    requests: list[Any]
    tokenizer: Any


@pytest.fixture(scope="session")
def world(oracle: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> World:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("world")
    model = oracle.tiny_model("llama", 1, folder / "tiny")
    adapters = oracle.varied_adapters(model, folder / "adapters", seed=50)
    reference = oracle.PeftOracle(model)
    requests = oracle.random_workload(reference, adapters, seed=5)
    return World(model, adapters, reference, requests, AutoTokenizer.from_pretrained(model))


@pytest.fixture
def serve(world: World, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on free ports, all on one state folder, with the flags given; stops them in the end."""
    servers: list[Server] = []

    def start(*flags: str) -> Server:
        port, log = free_port(), tmp_path / f"server-{len(servers)}.log"
        command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", str(world.model)]
        command += ["--port", str(port), "--state-dir", str(tmp_path / "state"), "--num-threads", "1", *flags]
        command += ["--device", "cpu", "--dtype", "float32", "--adapter-memory", "64MiB"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        servers.append(Server(process, f"http://127.0.0.1:{port}", log))
        servers[-1].wait_until_ready()
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
