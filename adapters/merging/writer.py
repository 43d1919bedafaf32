"""A safetensors file that is written tensor by tensor, so that never more than one is in memory.

Keys are sorted, and nothing but keys, types, shapes and values decides about the bytes. No torch.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Self

import msgspec

from ..safetensors_header import ITEM_BYTES

_METADATA = {"format": "pt"}
_ALIGNMENT = 8


@dataclass(frozen=True)
class Entry:
    """The type, as safetensors names it, and the shape of one tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


class TensorWriter:
    """A file with a place for each tensor. As a context manager it brings the file to disk at the end."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        """Write the header. Raises FileExistsError, OSError."""
        self._entries = dict(sorted(entries.items()))
        header, self._starts = _header(self._entries)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.fdopen(os.open(path, flags, 0o600), "wb")
        self._missing = set(self._entries)
        self._file.write(header)

    def write(self, key: str, data: bytes, offset: int = 0) -> None:
        """Write a tensor's bytes, or those from `offset` on; its last byte completes it. Raises OSError."""
        entry = self._entries[key]
        assert offset + len(data) <= entry.num_bytes, key
        self._file.seek(self._starts[key] + offset)
        self._file.write(data)
        if offset + len(data) == entry.num_bytes:
            self._missing.discard(key)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._file:
            if error is None:
                assert not self._missing, sorted(self._missing)[:3]
                self._file.flush()
                os.fsync(self._file.fileno())


def _header(entries: Mapping[str, Entry]) -> tuple[bytes, dict[str, int]]:
    """Return what a file begins with, and where in the file each tensor does."""
    described: dict[str, object] = {"__metadata__": _METADATA}
    starts, end = {}, 0
    for key, entry in entries.items():
        starts[key] = end
        end += entry.num_bytes
        described[key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (starts[key], end)}
    text = msgspec.json.encode(described)
    text += b" " * (-len(text) % _ALIGNMENT)
    header = struct.pack("<Q", len(text)) + text
    return header, {key: len(header) + start for key, start in starts.items()}
