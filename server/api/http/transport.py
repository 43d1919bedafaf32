"""A connection's transport that joins what is written in one turn of the event loop. Knows bytes and no HTTP."""

import asyncio
import fcntl
import struct
import termios
from typing import Any


class JoinedWrites:
    """A transport that holds back what is written until the end of this turn. All else is the wrapped one's own.

    written: bytes that the transport has been given.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.written = 0
        self.is_closing = transport.is_closing  # asked for at each answer
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    @property
    def unsent(self) -> int:
        """Return the number of bytes that the system has not taken yet from the transport."""
        return self._transport.get_write_buffer_size()

    @property
    def unacknowledged(self) -> int:
        """Return the number of bytes that the system has taken and the client has not acknowledged, or 0 if unknown.

        The transport alone shows no progress while megabytes of the system's own drain.
        """
        connection = self._transport.get_extra_info("socket")
        try:
            answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])

    def write(self, data: bytes) -> None:
        """Send `data` at the end of this turn."""
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def close(self) -> None:
        """Send what is held, and close."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what is held, now."""
        if self._held:
            held, self._held = self._held, []
            joined = b"".join(held)
            self.written += len(joined)
            self._transport.write(joined)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
