"""The end of the server: the signals that ask for it, and the moment by which it has come, whatever is waited for.

The state on disk is whole at any moment, so that a process may end at any moment.
"""

import asyncio
import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

HURRY_SECONDS = 1.0  # from a second signal to the end, in which clients are told
LEAST_SECONDS = 2.0  # of any end, for errors on their way out and the processes to leave
CLOSING_SHARE, MOST_CLOSING = 0.25, 4.0  # of the grace time, and seconds, for all that comes when nothing runs any more


class Ending:
    """The end, as far as it has come. first: set when the server is asked to stop. second: when it is to stop at once.

    grace: seconds from the first signal to the end of the process. last: what is done in the end if something is still
    waited for then; called on another thread.
    """

    def __init__(self, grace: float, last: Callable[[], None]) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        self._grace = grace
        self._last = last
        self._status = 0
        self._at = math.inf  # of time.monotonic()
        self._timer: threading.Timer | None = None

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return max(0.0, self._at - time.monotonic())

    @property
    def for_requests(self) -> float:
        """Return the seconds of the grace time in which requests may end by themselves."""
        return self._grace - (self._closing if self._grace > LEAST_SECONDS else 0.0)

    def count(self) -> None:
        """Count a signal."""
        if self.first.is_set():
            self.second.set()
            self.within(HURRY_SECONDS)
        else:
            self.first.set()
            self.within(max(self._grace, LEAST_SECONDS))

    def fail(self, status: int) -> None:
        """End with this exit status, as no signal has asked for it, and in no more than the grace time."""
        self._status = status
        self.within(max(self._grace, LEAST_SECONDS))

    def within(self, seconds: float) -> None:
        """End the process after so many seconds, or when it was to end before, unless it has ended by itself."""
        at = time.monotonic() + seconds
        if at >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = at
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    @property
    def _closing(self) -> float:
        return min(MOST_CLOSING, CLOSING_SHARE * self._grace)

    def _end(self) -> None:
        """End the process, whatever its other threads wait for."""
        logger.warning("The time to end is over, so that this server waits for nothing any more")
        with contextlib.suppress(Exception):
            self._last()
        os._exit(self._status)


def heed_signals(grace: float, last: Callable[[], None]) -> Ending:
    """Count SIGTERM and SIGINT on the running event loop, for as long as that runs."""
    loop, ending = asyncio.get_running_loop(), Ending(grace, last)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ending.count)
    return ending
