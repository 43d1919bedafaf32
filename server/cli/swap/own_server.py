"""A server of the command's own."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..server_process import free_port, running

PATIENCE = 600.0  # seconds for a model to be loaded
WORDS = (sys.executable, "-m", "peftserve.server.cli.main", "serve")
# So that few copies are enough to have some on disk and some on the host.
SMALL_POOLS: Mapping[str, int] = {"max-loras": 4, "max-cpu-loras": 16}


@contextlib.contextmanager
def started(model: str | None, flags: Sequence[str], pools: Mapping[str, int], folder: Path) -> Iterator[str]:
    """Its address. folder: for its state, which another may have left there. flags: the user's own, which win over the
    pools. Raises ServerError.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    limits = [word for name, value in pools.items() for word in (f"--{name}", str(value))]
    own = ["--port", str(port), "--state-dir", str(folder / "state"), *limits]
    words = [*WORDS, *([model] if model else []), *own, *flags]
    with running(words, url, "/health/ready", folder / "log", PATIENCE, os.environ):
        yield url
