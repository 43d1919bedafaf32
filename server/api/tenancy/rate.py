"""How fast places come free, for answers to those who find none."""

import math
import time
from collections import deque
from collections.abc import Callable

WINDOW = 30.0  # seconds that are looked back upon
LONGEST = 60  # seconds that anybody is told to wait


class FreeRate:
    """The rate at which places of one process come free."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._freed: deque[tuple[float, int]] = deque()  # times, to a tenth of a second, with places
        self._busy_since: float | None = None

    def began(self) -> None:
        """Note that a place is taken, of whatever was idle before."""
        if self._busy_since is None:
            self._busy_since = self._clock()

    def freed(self, places: int, is_idle: bool) -> None:
        """Note that places came free. is_idle: all are."""
        now = round(self._clock(), 1)
        if self._freed and self._freed[-1][0] == now:
            places += self._freed.pop()[1]
        self._freed.append((now, places))
        self._forget_old()
        if is_idle:
            self._busy_since = None

    def seconds_until(self, places: int, processes: int = 1) -> int:
        """Return in how many seconds so many places have come free, if it goes on as it has.

        processes: that free places as fast as this one.
        """
        self._forget_old()
        now = self._clock()
        since = max(self._busy_since or now, now - WINDOW)
        freed = sum(places for _, places in self._freed) or 1  # none yet: the next one may be about to
        rate = freed * processes / max(now - since, 1.0)
        return min(max(math.ceil(places / rate), 1), LONGEST)

    def _forget_old(self) -> None:
        while self._freed and self._freed[0][0] < self._clock() - WINDOW:
            self._freed.popleft()
