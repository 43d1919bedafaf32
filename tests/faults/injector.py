"""Faults of disk, clock and memory for the processes of a server, by the library that `shim.c` is compiled to.

The page is shared between the test and all processes that were started with `environment`, so that a fault begins and
ends while they run. Knows no server.
"""

import enum
import errno
import mmap
import os
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

SOURCE = Path(__file__).with_name("shim.c")
EVER = 1 << 62

_FIELDS = ("mode", "calls", "first", "last", "error", "pid", "seconds", "bytes", "count", "given")
_PART = 256  # bytes, behind the fields


class Calls(enum.IntFlag):
    """What is counted and may fail, as `shim.c` numbers it."""

    CREATE = 1
    WRITE = 2
    SYNC = 4
    RENAME = 8
    REMOVE = 16
    READ = 32
    ALLOCATE = 64
    CHANGES = CREATE | WRITE | SYNC | RENAME | REMOVE


class Mode(enum.IntEnum):
    OFF = 0
    FAIL = 1
    KILL_BEFORE = 2
    KILL_AFTER = 3


def compiler() -> str | None:
    """Return the C compiler; None where there is none, and nothing of this can run."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


class Injector:
    """One page of faults. environment: what a process has to be started with."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        with open(environment["FAULTS_PAGE"], "r+b") as file:
            self._memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)

    @classmethod
    def make(cls, folder: Path, root: Path) -> Self:
        """Compile the library into `folder`, for faults of the files below `root`.

        Where there is no compiler, no fault ever comes. Raises RuntimeError with what the compiler has said.
        """
        library, page = folder / "shim.so", folder / "page"
        page.write_bytes(bytes(mmap.PAGESIZE))
        own = {"FAULTS_PAGE": str(page), "FAULTS_ROOT": str(root.resolve())}
        if (program := compiler()) is not None:
            _compile(program, library)
            own["LD_PRELOAD"] = str(library)
        return cls({**os.environ, **own})

    @property
    def is_loaded(self) -> bool:
        """Return whether processes with the environment can be given faults."""
        return "LD_PRELOAD" in self.environment

    @classmethod
    def of_environment(cls) -> Self:
        """Return the injector that this very process was started with."""
        return cls(os.environ)

    @contextmanager
    def failing(
        self,
        calls: Calls,
        error: int = errno.EIO,
        *,
        first: int = 1,
        last: int = EVER,
        part: str = "",
        pid: int = 0,
        least_bytes: int = 0,
    ) -> Iterator[None]:
        """Let the calls from the `first`-th to the `last`-th fail, on paths that hold `part`, while the block runs.

        pid: in this process only. least_bytes: of an allocation.
        """
        self.arm(Mode.FAIL, calls, error=error, first=first, last=last, part=part, pid=pid, least_bytes=least_bytes)
        try:
            yield
        finally:
            self.disarm()

    def arm(
        self,
        mode: Mode,
        calls: Calls,
        *,
        error: int = 0,
        first: int = 1,
        last: int = EVER,
        part: str = "",
        pid: int = 0,
        least_bytes: int = 0,
    ) -> None:
        """Begin to count calls, and to let those fail, or kill, that are said."""
        self.disarm()
        self._memory[len(_FIELDS) * 8 : len(_FIELDS) * 8 + _PART] = part.encode().ljust(_PART, b"\0")
        for field, value in (
            *(("first", first), ("last", last), ("error", error), ("pid", pid), ("bytes", least_bytes)),
            *(("count", 0), ("given", 0), ("mode", mode), ("calls", calls)),
        ):
            self._put(field, value)

    def disarm(self) -> None:
        self._put("calls", 0)
        self._put("mode", Mode.OFF)

    def set_clock(self, seconds: int) -> None:
        """Let the clock be ahead by so many seconds, or behind."""
        self._put("seconds", seconds)

    def processes(self) -> list[int]:
        """Return the ids of the processes that run with `environment`, whoever has started them."""
        mark = f"FAULTS_PAGE={self.environment['FAULTS_PAGE']}".encode()
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # another user's, or one that ends meanwhile
                if mark in file.read_bytes().split(b"\0"):
                    found.append(int(file.parent.name))
        return found

    def kill_all(self) -> None:
        """Kill them all, as a machine that goes down; return when none is left."""
        while running := self.processes():
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def count(self) -> int:
        """Return how many calls were counted since `arm`."""
        return self._get("count")

    @property
    def given(self) -> int:
        """Return how many of them were made to fail."""
        return self._get("given")

    def _put(self, field: str, value: int) -> None:
        struct.pack_into("<q", self._memory, _FIELDS.index(field) * 8, value)

    def _get(self, field: str) -> int:
        value: int = struct.unpack_from("<q", self._memory, _FIELDS.index(field) * 8)[0]
        return value


def _compile(program: str, library: Path) -> None:
    command = [program, "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
