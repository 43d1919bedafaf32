"""Compiled adapters in host memory: least recently used first out, by bytes and by number."""

from collections import OrderedDict
from collections.abc import Collection

from .packing import Blob


class HostTier:
    """max_bytes bounds what is kept; max_count too, unless it is None."""

    def __init__(self, max_bytes: int, max_count: int | None = None) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        self._blobs: OrderedDict[str, Blob] = OrderedDict()
        self.num_bytes = 0

    def __contains__(self, digest: str) -> bool:
        return digest in self._blobs

    def digests(self) -> list[str]:
        return list(self._blobs)

    def get(self, digest: str) -> Blob | None:
        blob = self._blobs.get(digest)
        if blob is not None:
            self._blobs.move_to_end(digest)
        return blob

    def put(self, digest: str, blob: Blob, keep: Collection[str] = ()) -> None:
        """Add a blob and drop the oldest ones over the limits, but none in `keep` and not the new one."""
        self.drop(digest)
        self._blobs[digest] = blob
        self.num_bytes += blob.num_bytes
        for candidate in [d for d in self._blobs if d != digest and d not in keep]:
            if not self._is_over():
                break
            self.drop(candidate)

    def drop(self, digest: str) -> None:
        blob = self._blobs.pop(digest, None)
        if blob is not None:
            self.num_bytes -= blob.num_bytes

    def _is_over(self) -> bool:
        too_many = self._max_count is not None and len(self._blobs) > self._max_count
        return too_many or self.num_bytes > self._max_bytes

    def check_integrity(self) -> None:
        """Raises AssertionError if the byte count is not the sum over the blobs."""
        total = sum(blob.num_bytes for blob in self._blobs.values())
        assert total == self.num_bytes, f"host tier counts {self.num_bytes} bytes, holds {total}"
