"""Compiled adapters in host memory: least recently used first out, by bytes and by number."""

from collections import OrderedDict
from collections.abc import Callable, Collection

from .packing import Blob


class HostTier:
    """A cache of blobs by key: a digest, with a task behind it where there is one.

    max_bytes: of all blobs. max_count: most blobs; None for any number. evicted: called with each that has to go.
    Only the lists of keys and digests and the check look at all blobs.
    """

    def __init__(
        self,
        max_bytes: int,
        max_count: int | None = None,
        evicted: Callable[[str, Blob], None] = lambda *_: None,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._evicted = evicted
        self._blobs: OrderedDict[str, Blob] = OrderedDict()
        self._keys: dict[str, set[str]] = {}  # by digest
        self.num_bytes = 0
        self.num_changes = 0  # of what is there, in all its time

    def __contains__(self, key: str) -> bool:
        return key in self._blobs

    def keys(self) -> list[str]:
        """Return all keys, least recently used first."""
        return list(self._blobs)

    def digests(self) -> list[str]:
        """Return all digests, each once however many tasks of it there are."""
        return list(self._keys)

    def keys_of(self, digest: str) -> list[str]:
        return list(self._keys.get(digest, ()))

    def get(self, key: str) -> Blob | None:
        blob = self._blobs.get(key)
        if blob is not None:
            self._blobs.move_to_end(key)
        return blob

    def peek(self, key: str) -> Blob | None:
        """Return a blob without using it: it goes when it would have gone."""
        return self._blobs.get(key)

    def put(self, key: str, blob: Blob, keep: Collection[str] = ()) -> None:
        """Add a blob and drop the oldest ones over the limits, but none in `keep` and not the new one."""
        self.drop(key)
        self._blobs[key] = blob
        self._keys.setdefault(digest_of(key), set()).add(key)
        self.num_changes += 1
        self.num_bytes += blob.num_bytes
        while self._is_over() and (oldest := self._oldest({key, *keep})) is not None:
            gone = self._blobs[oldest]
            self.drop(oldest)
            self._evicted(oldest, gone)

    def drop(self, key: str) -> None:
        blob = self._blobs.pop(key, None)
        if blob is None:
            return
        self.num_changes += 1
        self.num_bytes -= blob.num_bytes
        keys = self._keys[digest_of(key)]
        keys.remove(key)
        if not keys:
            del self._keys[digest_of(key)]

    def _oldest(self, keep: Collection[str]) -> str | None:
        return next((key for key in self._blobs if key not in keep), None)

    def _is_over(self) -> bool:
        too_many = self._max_count is not None and len(self._blobs) > self._max_count
        return too_many or self.num_bytes > self._max_bytes

    def check_integrity(self) -> None:
        """Raises AssertionError if the byte count is not the sum over the blobs, or the keys are not theirs."""
        total = sum(blob.num_bytes for blob in self._blobs.values())
        assert total == self.num_bytes, f"host tier counts {self.num_bytes} bytes, holds {total}"
        assert {key for keys in self._keys.values() for key in keys} == self._blobs.keys(), "keys and blobs differ"


def digest_of(key: str) -> str:
    return key.partition(":")[0]
