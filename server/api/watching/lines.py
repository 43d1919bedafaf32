"""Lines that go to a file or a pipe, written beside the event loop: a reader that is slow stops nobody.

Knows bytes and descriptors only.
"""

import asyncio
import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

PAUSE = 0.05  # seconds in which lines gather for one write
MOST = 20_000  # lines that wait, beyond which new ones are dropped


class LineWriter:
    """A writer to one descriptor. dropped: lines that found no room since the start."""

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._writing: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="lines")

    def put(self, line: bytes) -> None:
        """Write a line, which ends in a newline, soon."""
        if len(self._lines) >= MOST:
            self.dropped += 1
            return
        self._lines.append(line)
        if self._writing is None:
            self._writing = asyncio.ensure_future(self._write_all())

    async def close(self) -> None:
        """Write what waits."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()

    async def _write_all(self) -> None:
        """Write until there is nothing more."""
        loop = asyncio.get_running_loop()
        while self._lines:
            await asyncio.sleep(PAUSE)
            lines, self._lines = self._lines, []
            await loop.run_in_executor(self._thread, _write, self._descriptor, b"".join(lines))
        self._writing = None


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it; nothing where nobody reads any more."""
    rest = memoryview(data)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(descriptor, rest) :]
