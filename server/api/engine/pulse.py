"""Whether an engine lives: how long it has given no sign of life, and when that is too long.

Signs of life are messages, which the engine's loop sends at each few turns, and, where the processor does its work,
processor time that it has used. Knows time and numbers; does not know messages or connections.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

LOOK_SECONDS = 0.5  # between two looks
BUSY_TIMES = 10  # as long may pass with processor time and without a message, or while a model loads in silence


@dataclass(frozen=True)
class Vitals:
    """What the system says of a process. processor_seconds: used so far. stopped: by a signal, until another one."""

    processor_seconds: float
    stopped: bool


class Pulse:
    """The pulse of one engine process after the other.

    To be looked at every LOOK_SECONDS. Time in which nobody looked does not count: a process that was itself stopped
    has not heard what came meanwhile.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._processor_seconds = math.inf  # not known yet
        self._looked = self._heard = clock()
        self._stopped = False
        self._without_message = 0.0
        self.silence = 0.0  # seconds without any sign of life

    @property
    def age(self) -> float:
        """Return the seconds since the last message."""
        return self._clock() - self._heard

    def begin(self) -> None:
        """Begin with a new process."""
        self._processor_seconds = math.inf
        self._stopped = False
        self.heard()

    def heard(self) -> None:
        """Note a message."""
        self._heard = self._clock()
        self._without_message = self.silence = 0.0

    def look(self, vitals: Vitals | None, *, works: bool) -> None:
        """Look at the process. vitals: None where they cannot be had. works: processor time is a sign of life now."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, 2 * LOOK_SECONDS), now
        self._without_message += passed
        self.silence += passed
        if vitals is None:
            return
        self._stopped = vitals.stopped
        used, self._processor_seconds = self._processor_seconds, vitals.processor_seconds
        if works and vitals.processor_seconds > used:
            self.silence = 0.0

    def is_lost(self, patience: float, *, loading: bool) -> bool:
        """Return whether the process hangs. patience: seconds without a sign of life; 0 for ever.

        A model may load for as long as it takes, but not in silence for BUSY_TIMES the patience; a step may compute for
        BUSY_TIMES the patience.
        """
        if not patience:
            return False
        if loading and not self._stopped:
            return self.silence > BUSY_TIMES * patience
        return self.silence > patience or (not loading and self._without_message > BUSY_TIMES * patience)
