"""Token buckets by tenant, in memory that all processes of a server share.

A bucket fills by its limit a minute, up to one minute's worth; what is spent may leave it in debt. A change is a few
words under a lock of the file's, which the system takes back from a process that is killed.
"""

import contextlib
import fcntl
import hashlib
import time
from collections.abc import Callable, Iterator, MutableSequence

BUCKETS = 1 << 12  # of tenants that have a limit
FIELDS = 3  # the tenant's digest; tokens; when they were counted, in seconds of the system's clock since its start
MINUTE = 60.0
_FULL = "there are more tenants with a limit of tokens than buckets"


class TokenBuckets:
    """The buckets as one process sees them.

    words: FIELDS of each, as floats; zeros are nobody's. descriptor: of the file that they lie in; None where no other
    process has them. clock: the same in all processes.
    """

    def __init__(
        self,
        words: MutableSequence[float] | None = None,
        descriptor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._words = [0.0] * (FIELDS * BUCKETS) if words is None else words
        self._descriptor = descriptor
        self._clock = clock

    def balance(self, name: str, limit: int) -> float:
        """Return the tokens that a tenant has, at most its `limit` a minute."""
        with self._locked():
            return self._level(self._find(name), limit)

    def spend(self, name: str, limit: int, tokens: float, least: float | None = None) -> float:
        """Take tokens, or give them back where `tokens` is negative. Returns what was there before.

        least: nothing is taken where less was there.
        """
        with self._locked():
            place = self._find(name)
            before = self._level(place, limit)
            if least is None or before >= least:
                self._write(place, _digest(name), min(before - tokens, float(limit)), self._clock())
            return before

    def _level(self, place: int, limit: int) -> float:
        if not self._words[place]:
            return float(limit)
        tokens, counted = self._words[place + 1], self._words[place + 2]
        return min(float(limit), tokens + max(self._clock() - counted, 0.0) * limit / MINUTE)

    def _find(self, name: str) -> int:
        """Return where a tenant's bucket is, or may be: behind its own place, as far as others have taken those."""
        own = _digest(name)
        start = int(own) % BUCKETS
        for step in range(BUCKETS):
            place = (start + step) % BUCKETS * FIELDS
            if self._words[place] in (0.0, own):
                return place
        raise RuntimeError(_FULL)

    def _write(self, place: int, *record: float) -> None:
        for field, value in enumerate(record):
            self._words[place + field] = value

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self._descriptor is None:
            yield
            return
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)


def _digest(name: str) -> float:
    """Return a number over 0 that stands for a tenant: of 52 bits, which a float has exactly."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float((int.from_bytes(digest) >> 12) + 1)
