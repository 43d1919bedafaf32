"""A server of replicas on Ray, or of one engine without it, that a measurement starts and asks."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import httpx

from ..server_process import cpu_seconds, family, free_port, running

PATIENCE = 600.0  # seconds until all replicas have loaded the model
COMMAND = (sys.executable, "-m", "peftserve.server.cli.main")
TIMEOUT = 300.0


class Server(NamedTuple):
    """A running server. replicas: 0 where there is one engine, without Ray. pid: of its first process."""

    url: str
    pid: int
    replicas: int

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics", trust_env=False, timeout=TIMEOUT).text

    def metric(self, name: str) -> float:
        """Return a metric's value, summed over its series."""
        return sum(map(float, re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.metrics(), re.MULTILINE)))

    def dealt(self) -> dict[str, float]:
        """Return how many sequences found their adapters in which tier."""
        found = re.findall(r'^peftserve_sequences_dealt_total\{tier="(\w+)"\} (\S+)$', self.metrics(), re.MULTILINE)
        return {tier: float(number) for tier, number in found}

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have taken until now, Ray's among them."""
        return cpu_seconds(family(self.pid))

    def actors(self) -> list[int]:
        """Return the processes of Ray in which replicas are, each of which has an engine process of its own."""
        return [pid for pid in sorted(family(self.pid)) if b"ServeReplica" in _command_line(pid)]


@contextlib.contextmanager
def started(replicas: int, model: str | None, flags: Sequence[str], folder: Path) -> Iterator[Server]:
    """Start a server and yield it when all its replicas answer. Raises ServerError."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    kind = ["deploy", "ray", "--replicas", str(replicas), "--cpus-per-replica", "0.5"] if replicas else ["serve"]
    own = ["--port", str(port), "--state-dir", str(folder / "state"), "--num-threads", "1", "--log-level", "warning"]
    words = [*COMMAND, *kind, *([model] if model else []), *own, *flags]
    folder.mkdir(parents=True, exist_ok=True)
    with running(words, url, "/health/ready", folder / "log", PATIENCE, os.environ) as pid:
        server = Server(url, pid, replicas)
        while replicas and server.metric("peftserve_replicas") < replicas:
            pass  # each look is a request
        yield server


def _command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
