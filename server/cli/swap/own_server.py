"""A server of the command's own."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..server_process import cpu_seconds, free_port, running

PATIENCE = 600.0  # seconds for a model to be loaded
WORDS = (sys.executable, "-m", "peftserve.server.cli.main", "serve")
# So that few copies are enough to have some on disk and some on the host.
SMALL_POOLS: Mapping[str, int] = {"max-loras": 4, "max-cpu-loras": 16}


class OwnServer(NamedTuple):
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """That its processes have taken until now."""
        return cpu_seconds(self.pid)


@contextlib.contextmanager
def started(model: str | None, flags: Sequence[str], pools: Mapping[str, int], folder: Path) -> Iterator[OwnServer]:
    """folder: for its state, which another may have left there. flags: the user's own, which win over the
    pools. Raises ServerError.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    limits = [word for name, value in pools.items() for word in (f"--{name}", str(value))]
    own = ["--port", str(port), "--state-dir", str(folder / "state"), *limits]
    words = [*WORDS, *([model] if model else []), *own, *flags]
    with running(words, url, "/health/ready", folder / "log", PATIENCE, os.environ) as pid:
        yield OwnServer(url, pid)
