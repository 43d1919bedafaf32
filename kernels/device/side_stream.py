"""A second stream beside the current one, for work that does not depend on what the current one does next."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second stream for work that is forked off the current one, and joined again.

    Forked work begins when all that was enqueued before it is done; `join` makes the current stream wait. Captured
    graphs include both. Memory that forked work reads must be kept until it has been joined.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._forked = False

    @contextmanager
    def forked(self) -> Iterator[None]:
        """Enqueue on the second stream, as a context."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        self._forked = True
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Make the current stream wait for forked work. Does nothing unless some was forked since the last time."""
        if self._forked and self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
            self._forked = False
