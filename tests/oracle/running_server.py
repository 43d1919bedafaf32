"""A real `peftserve serve` on a free port: two processes, one state folder, one log."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.server_process import free_port

if TYPE_CHECKING:
    import httpx

PATIENCE = 180.0
"""Seconds after which a wait has failed. On an idle machine each takes a few."""
PAUSE = 0.1
"""Seconds between two polls: each is a request, which takes time from the server that is waited for."""


@dataclass
class RunningServer:
    """The processes, the URL, the state folder and the log, and a client for the test's own questions."""

    process: subprocess.Popen[bytes]
    url: str
    state: Path
    log: Path
    client: "httpx.Client" = field(init=False)

    def __post_init__(self) -> None:
        import httpx

        self.client = httpx.Client(base_url=self.url, timeout=PATIENCE)

    @classmethod
    def start(
        cls, model: Path, state: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> "RunningServer":
        """Start a server on a free port and return when it is ready. environment: of its own, if any."""
        server = cls.launch(model, state, log, *flags, environment=environment)
        try:
            server.wait_until(server._is_ready, "be ready")
        except BaseException:
            server.process.kill()
            server.stop()
            raise
        return server

    @classmethod
    def launch(
        cls, model: Path, state: Path, log: Path, *flags: str, environment: Mapping[str, str] | None = None
    ) -> "RunningServer":
        """Start a server on a free port, and do not wait for it."""
        port = free_port()
        command = [sys.executable, "-m", "peftserve.server.cli.main", "serve", str(model), "--port", str(port)]
        command += ["--state-dir", str(state), "--dtype", "float32", "--num-threads", "1"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, "--adapter-memory", "64MiB", *flags],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        return cls(process, f"http://127.0.0.1:{port}", state, log)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            in_time = time.monotonic() < deadline
            assert in_time, f"waited {PATIENCE:.0f} s in vain for the server to {what}:\n{self.log.read_text()}"
            time.sleep(PAUSE)

    def _is_ready(self) -> bool:
        import httpx

        assert self.process.poll() is None, f"the server has exited:\n{self.log.read_text()}"
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def upload(self, name: str, adapter: Path) -> "httpx.Response":
        return self.client.post("/v1/adapters", data={"name": name}, files=adapter_files(adapter))

    def metric(self, name: str) -> float:
        """Return a metric's value, summed over its series."""
        lines = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        assert lines, f"there is no metric {name}"
        return sum(map(float, lines))

    def wait_for_metric(self, name: str, value: float) -> None:
        self.wait_until(lambda: self.metric(name) == value, f"bring {name} to {value}")

    def engine_pid(self) -> int:
        """Return the process id of the server's child that runs the engine."""
        return next(pid for pid, command in children_of(self.process.pid).items() if b"server.engine" in command)

    def kill_engine(self) -> None:
        os.kill(self.engine_pid(), signal.SIGKILL)

    def kill(self) -> None:
        """Kill both processes at once, with SIGKILL."""
        engine = self.engine_pid()
        self.process.kill()
        with contextlib.suppress(ProcessLookupError):  # it ends with its parent, maybe by now
            os.kill(engine, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """End the server with SIGTERM, as an operator does, and return its exit status."""
        self.client.close()
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.process.kill()  # the engine ends with its parent


def adapter_files(adapter: Path, suffix: bytes = b"") -> list[tuple[str, tuple[str, bytes]]]:
    """Return a checkpoint's files as parts of a multipart upload.

    suffix: white space to append to the configuration, for another digest.
    """
    paths = [*adapter.rglob("adapter_config.json"), *adapter.rglob("adapter_model.safetensors")]
    contents = {str(path.relative_to(adapter)): path.read_bytes() for path in paths}
    contents["adapter_config.json"] += suffix
    return [("files", part) for part in contents.items()]


def children_of(pid: int) -> dict[int, bytes]:
    """Return the command line of each child of a process, without those that end while one looks."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            for child in (task / "children").read_text().split():
                with contextlib.suppress(OSError):
                    found[int(child)] = Path(f"/proc/{child}/cmdline").read_bytes()
    return found
