"""A server as a process: started, awaited, timed by its CPU clock, and stopped with all that it started."""

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from peftserve.server.cli.errors import FAILED, CommandError

GRACE = 60.0  # seconds from SIGTERM to SIGKILL


class ServerError(CommandError):
    """A server has not become ready. The message has the end of its log."""

    def __init__(self, message: str) -> None:
        super().__init__(message, FAILED)


@contextlib.contextmanager
def running(
    words: Sequence[str], url: str, health: str, log: Path, patience: float, environment: Mapping[str, str]
) -> Iterator[int]:
    """Start a server, yield its process id when it is ready, and stop it with its children. Raises ServerError.

    health: the path that answers 200 when the server is ready. patience: seconds until it must be.
    """
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
    """Stop a process and its children, which are in its group since it has a session of its own."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def family(pid: int) -> set[int]:
    """Return a process and all its descendants that still run."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            parents[int(stat.parent.name)] = int(_fields(stat)[1])
    members = {pid}
    while grown := {child for child, parent in parents.items() if parent in members} - members:
        members |= grown
    return members


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time that processes have taken until now, all threads together; 0 without Linux's /proc.

    The scheduler's statistics are finer than clock ticks, but have no threads that have ended, which ticks count.
    """
    return sum(max(_ticks(pid), _scheduled(pid)) for pid in pids)


def _ticks(pid: int) -> float:
    try:
        fields = _fields(Path(f"/proc/{pid}/stat"))
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fields(stat: Path) -> list[str]:
    """Return the fields of a process's `stat` from its state on: the name before them may hold anything."""
    return stat.read_text().rpartition(")")[2].split()


def _scheduled(pid: int) -> float:
    seconds = 0.0
    for statistics in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # the thread has ended
            seconds += int(statistics.read_text().split()[0]) / 1e9
    return seconds


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a log."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def free_port() -> int:
    """Return a port of this machine for a server that is yet to start.

    It is held for as long as this process runs by a socket that does not listen, beside which a server can: or else the
    system might give it to another program before the server has it.
    """
    holder = socket.socket()
    atexit.register(holder.close)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return int(holder.getsockname()[1])
