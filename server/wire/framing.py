"""Messages on a stream of bytes: four bytes of length, and the message. Knows bytes only."""

import struct

_LENGTH = struct.Struct("<I")


def framed(message: bytes) -> bytes:
    return _LENGTH.pack(len(message)) + message


class Unframer:
    """Cuts a stream that arrives in pieces of any size into messages."""

    def __init__(self) -> None:
        self._begun = bytearray()  # of a message that has not arrived whole
        self._wanted = _LENGTH.size  # bytes from which there is more to do

    def push(self, data: bytes) -> list[memoryview]:
        """Return the messages that are complete now, in order.

        Raises MemoryError, and then nothing has changed: the same piece can be pushed again.
        """
        if self._begun:
            if len(self._begun) + len(data) < self._wanted:
                self._begun += data
                return []
            data = bytes(self._begun) + data
        messages, rest, wanted = self._cut(memoryview(data))
        self._begun, self._wanted = bytearray(rest), wanted
        return messages

    def _cut(self, data: memoryview) -> tuple[list[memoryview], memoryview, int]:
        """Return the messages, what is left, and how much of the next there must be to go on."""
        messages: list[memoryview] = []
        start = 0
        while len(data) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            begin, end = start + _LENGTH.size, start + _LENGTH.size + length
            if end > len(data):
                return messages, data[start:], end - start
            messages.append(data[begin:end])
            start = end
        return messages, data[start:], _LENGTH.size
