"""A server as a process of its own: started, waited for, and stopped with all that it started."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from .errors import FAILED, CommandError

GRACE = 60.0  # seconds from SIGTERM to SIGKILL


class ServerError(CommandError):
    """A server that did not become ready; the message has the end of its log."""

    def __init__(self, message: str) -> None:
        super().__init__(message, FAILED)


@contextlib.contextmanager
def running(
    words: Sequence[str], url: str, health: str, log: Path, patience: float, environment: Mapping[str, str]
) -> Iterator[int]:
    """Inside, the server is ready; its process's id. patience: seconds until it must be."""
    with log.open("wb") as out:
        try:
            process = subprocess.Popen(
                words, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, env=environment
            )
        except OSError as error:
            raise ServerError(f"{words[0]}: {error.strerror}") from None
    try:
        _wait(process, url + health, log, patience)
        yield process.pid
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not _answers(url):
        if process.poll() is not None:
            raise ServerError(f"the server has exited with {process.returncode}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ServerError(f"the server was not ready after {patience:.0f} s:\n{tail(log)}")
        time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False, timeout=5.0).is_success
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The process has a session of its own, so its children are in its group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def cpu_seconds(pid: int) -> float:
    """That a process has taken until now, with all that it started and that still runs; 0 without Linux's /proc."""
    parents: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            own, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            parents[own], ticks[own] = int(fields[1]), int(fields[11]) + int(fields[12])
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(ticks.get(one, 0) for one in family) / os.sysconf("SC_CLK_TCK")


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
