"""Numbers that several processes see: one for each process, which it alone writes."""

import mmap
import tempfile
from collections.abc import Iterator, MutableSequence
from contextlib import contextmanager
from typing import cast

_SIZE = 8  # bytes of one number


@contextmanager
def shared_counts(processes: int) -> Iterator[int]:
    """The descriptor of a file of zeros, one for each process, to be looked at with `view`. It has no name."""
    with tempfile.TemporaryFile() as file:
        file.truncate(_SIZE * processes)
        yield file.fileno()


def view(descriptor: int) -> MutableSequence[int]:
    """The numbers themselves, as long as the view lives."""
    return cast(MutableSequence[int], memoryview(mmap.mmap(descriptor, 0)).cast("q"))
