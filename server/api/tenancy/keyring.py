"""The keys that are known now: those of the configuration, and those of a file that is read again when it changes."""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from peftserve.adapters.quotas import Quota

from .key_file import KeyFileError, Keys, digest_of, keys_alone, parse_keys
from .tenant import Tenant

logger = logging.getLogger(__name__)

PERIOD = 0.25  # seconds between two looks at the file
LARGEST = 16 << 20  # bytes of a file


class Keyring:
    """The keys of one process.

    keys: each of one who may do all. file: with further keys. quota: of tenants that have none of their own.
    Raises KeyFileError where the file cannot be used.
    """

    def __init__(self, keys: Sequence[str] = (), file: Path | None = None, quota: Quota | None = None) -> None:
        self._quota = quota or Quota()
        self._own = keys_alone(keys, self._quota)
        self._file = file
        self._keys: Keys = self._own
        self._taken: bytes | str = b""  # the content, or the fault, that the keys are by
        self._last: bytes | str = b""  # what was seen at the last look
        self.on_change: Callable[[int, str | None], None] | None = None  # told of the number of keys, and of a fault
        if file is not None:
            self._taken = self._last = read_key_file(file)
            self._keys = {**parse_keys(self._taken, self._quota), **self._own}

    @property
    def is_open(self) -> bool:
        """Return whether no key is asked for."""
        return self._file is None and not self._own

    def find(self, key: bytes) -> Tenant | None:
        """Return who has a key, if anybody has.

        What is looked up is its digest, so that the time which that takes tells nothing of any key that is known.
        """
        return self._keys.get(digest_of(key))

    def refresh(self) -> None:
        """Look at the file, and take what has changed once two looks see the same: it may be half written.

        One that cannot be used leaves the keys as they are, and is an error in the log.
        """
        assert self._file is not None
        try:
            seen: bytes | str = read_key_file(self._file)
        except KeyFileError as error:
            seen = str(error)
        is_settled, self._last = seen == self._last, seen
        if is_settled and seen != self._taken:
            self._taken = seen
            self._take(seen)

    def _take(self, seen: bytes | str) -> None:
        fault = seen if isinstance(seen, str) else None
        try:
            if isinstance(seen, bytes):
                self._keys = {**parse_keys(seen, self._quota), **self._own}
                logger.info("The file of keys has changed: %d keys are known now", len(self._keys))
        except KeyFileError as error:
            fault = str(error)
        if fault is not None:
            logger.error("The file of keys cannot be used, and the keys stay as they were: it %s", fault)
        if self.on_change is not None:
            self.on_change(len(self._keys), fault)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at the file again and again, on a thread, while the block runs."""
        if self._file is None:
            yield
            return
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(PERIOD):
                try:
                    self.refresh()
                except Exception:  # or else no key that is taken away would stop working any more
                    logger.exception("The look at the file of keys has failed, and is repeated")

        thread = threading.Thread(target=watch, name="keys", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def read_key_file(file: Path) -> bytes:
    """Return the content of a file of keys. Raises KeyFileError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST + 1)
    except OSError as error:
        raise KeyFileError(f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST:
        raise KeyFileError(f"has more than {LARGEST} bytes")
    return content
