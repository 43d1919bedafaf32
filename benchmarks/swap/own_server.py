"""A server that the benchmark starts itself, in folders that go with it."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..server_process import cpu_seconds, family, free_port, running

PATIENCE = 600.0  # seconds for a model to be loaded
WORDS = (sys.executable, "-m", "peftserve.server.cli.main", "serve")
# Small pools, so that few copies are enough to have some on disk and some on the host.
SMALL_POOLS: Mapping[str, int] = {"max-loras": 4, "max-cpu-loras": 16}


class OwnServer(NamedTuple):
    """A running server. pid: of its first process."""

    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time that its processes have taken until now."""
        return cpu_seconds(family(self.pid))


@contextlib.contextmanager
def started(model: str | None, flags: Sequence[str], pools: Mapping[str, int], folder: Path) -> Iterator[OwnServer]:
    """Start a server and yield it when it is ready. Raises ServerError.

    flags: the user's, which override `pools`. folder: for its state, which may be there already, and its log.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    limits = [word for name, value in pools.items() for word in (f"--{name}", str(value))]
    own = ["--port", str(port), "--state-dir", str(folder / "state"), *limits]
    words = [*WORDS, *([model] if model else []), *own, *flags]
    with running(words, url, "/health/ready", folder / "log", PATIENCE, os.environ) as pid:
        yield OwnServer(url, pid)
