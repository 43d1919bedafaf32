"""One process for each type: whatever a type does, the others are tried, too.

The processes are forked from one that has imported everything once.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from ..records import Record
from .setting import Setting

_PRELOADED = ["benchmarks.model_types.trial", "benchmarks.model_types.processes", "peftserve.server.engine"]


def each_alone(types: Sequence[str], setting: Setting, limit: float) -> Iterator[Record]:
    """Yield a record for each type when it is known. limit: seconds that a type may take."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    for name in types:
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(theirs, name, setting, Path(folder)))
            process.start()
            theirs.close()
            verdicts = _received(ours, limit)
            process.kill()
            process.join()
        seconds = round(time.monotonic() - begin, 1)
        yield {"type": name, **setting.fields(), "seconds": seconds, "verdicts": verdicts}


def _received(connection: Connection, limit: float) -> dict[str, str]:
    if not connection.poll(limit):
        return {"base": f"failed: it takes more than {limit:.0f} s"}
    try:
        verdicts: dict[str, str] = connection.recv()
    except EOFError:
        return {"base": "failed: its process ended"}
    return verdicts


def _run(connection: Connection, name: str, setting: Setting, folder: Path) -> None:
    from .trial import run_trial  # here, so that the process that starts others needs no torch

    connection.send(run_trial(name, setting, folder))
