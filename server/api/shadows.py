"""The copies of requests that the shadows of splits answer: a few at once, given up for whoever waits.

Knows tasks and their bounds; knows nothing of what runs in them.
"""

import asyncio
from collections.abc import Coroutine

from .admission import Admission
from .metrics.requests import Metrics

MOST = 4  # at once, in one process


class Shadows:
    """The copies that run in one process.

    admission: of the requests that they must not delay. running: most sequences in the engine's batch. metrics: where
    the copies are counted as requests are, and which nobody scrapes: the server's are of its clients' requests.
    """

    def __init__(self, admission: Admission, running: int) -> None:
        self.metrics = Metrics()
        self._admission = admission
        self._running = running
        self._tasks: set[asyncio.Task[None]] = set()

    def has_room(self, sequences: int) -> bool:
        """Return whether a copy of so many sequences may begin: there has to be room for a request beside it."""
        in_flight = self._admission.in_flight_everywhere + sequences
        return len(self._tasks) < MOST and in_flight < self._running and not self._admission.draining

    def start(self, copy: Coroutine[None, None, None]) -> None:
        """Run a copy beside the requests."""
        task = asyncio.create_task(copy)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def make_room(self) -> None:
        """Give all copies up if requests have come for which the batch has no place."""
        if self._tasks and self._admission.in_flight_everywhere > self._running:
            self.stop()

    def stop(self) -> None:
        """Give all copies up."""
        for task in tuple(self._tasks):
            task.cancel()
