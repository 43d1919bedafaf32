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
        """Return the messages that are complete now, in order."""
        if self._begun:
            self._begun += data
            if len(self._begun) < self._wanted:
                return []
            data = bytes(self._begun)
            self._begun.clear()
        messages, rest = self._cut(memoryview(data))
        self._begun += rest
        return messages

    def _cut(self, data: memoryview) -> tuple[list[memoryview], memoryview]:
        messages: list[memoryview] = []
        start, self._wanted = 0, _LENGTH.size
        while len(data) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, start)
            begin, end = start + _LENGTH.size, start + _LENGTH.size + length
            if end > len(data):
                self._wanted = end - start
                break
            messages.append(data[begin:end])
            start = end
        return messages, data[start:]
