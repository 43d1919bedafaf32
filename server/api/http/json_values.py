"""The number of values in a JSON text, counted at the speed of bytes before it is parsed. Knows bytes only.

A parser makes an object of each value and lets nothing else run until it is done: sixteen megabytes of text are a few
milliseconds of its time, as many of `[],[],[]` are seconds. A count takes the text a slice at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

SLICE = 1 << 18  # bytes, counted in one or two milliseconds


class Values(NamedTuple):
    """Upper bounds. values: of all kinds, containers among them. containers: arrays and objects. strings: keys too."""

    values: int
    containers: int
    strings: int


def count_values(data: bytes, slice_bytes: int = SLICE) -> Iterator[Values]:
    """Yield what was seen up to the end of each slice of bytes; never less than a parser would make of it."""
    values, containers, quotes, start = 1, 0, 0, 0
    while start < len(data):
        end = _behind_escapes(data, start + slice_bytes)
        # Without pairs of backslashes, a quote behind one is escaped, and no string ends there.
        parts = data[start:end].replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        outside = b" ".join(parts[quotes % 2 :: 2])
        opened = outside.count(b"[") + outside.count(b"{")
        quotes += len(parts) - 1
        containers += opened
        values += outside.count(b",") + opened
        yield Values(values, containers, (quotes + 1) // 2)
        start = end


def _behind_escapes(data: bytes, end: int) -> int:
    """Return the first place from `end` on that does not part a backslash from what it escapes."""
    while end < len(data) and data[end - 1] == 0x5C:
        end += 1
    return end
