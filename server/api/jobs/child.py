"""A child process that is given one line and answers in lines. It ends at the latest with who waits for it."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


async def run_child(module: str, order: bytes, hear: Callable[[bytes], None]) -> int:
    """Run a module in a process of one thread. hear: is called with each line of its output.

    Its standard input stays open after the order until this ends. Returns its exit code; a child of which nobody waits
    for the end any more is killed. Raises OSError if it cannot be started.
    """
    # A session of its own: Ctrl-C on the terminal is for the server, which ends its jobs.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **_ENVIRONMENT},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with contextlib.suppress(ConnectionError):  # one that has ended at once says more by its exit code
            process.stdin.write(order + b"\n")
            await process.stdin.drain()
        async for line in process.stdout:
            hear(line)
        return await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        process.stdin.close()
