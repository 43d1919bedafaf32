"""A transport that joins all that is written in one turn of the event loop to one call to the system.

A call to send costs more than what makes the bytes: an answer's head and body are two, of which one is saved. Knows
transports; does not know what is sent.
"""

import asyncio
import fcntl
import struct
import termios
from typing import Any


class JoinedWrites:
    """Holds back what is written until the end of this turn. All else is the transport's own.

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
        """Bytes that the system has not taken yet from the transport."""
        return self._transport.get_write_buffer_size()

    @property
    def unacknowledged(self) -> int:
        """Bytes that the system has taken and the other side has not, as far as the system tells.

        The transport alone shows no progress while megabytes of the system's own drain.
        """
        connection = self._transport.get_extra_info("socket")
        try:
            answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
        except OSError:
            return 0
        return int(struct.unpack("i", answer)[0])

    def write(self, data: bytes) -> None:
        if not self._held:
            self._loop.call_soon(self.flush)
        self._held.append(data)

    def close(self) -> None:
        """What was written before is sent before."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        if self._held:
            held, self._held = self._held, []
            joined = b"".join(held)
            self.written += len(joined)
            self._transport.write(joined)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
