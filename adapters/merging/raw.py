"""The bytes of tensors in a safetensors file, in pieces. No torch."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ..safetensors_header import TensorInfo

PIECE = 1 << 20


class RawTensors:
    """An open file whose header has been checked."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        (length,) = struct.unpack("<Q", self._file.read(8))
        self._data = 8 + length

    def pieces(self, info: TensorInfo) -> Iterator[bytes]:
        """Yield a tensor's bytes. Tensors of one size come in the same pieces; an empty one in one empty piece."""
        at = info.start
        while at < info.end or at == info.start:
            self._file.seek(self._data + at)
            piece = self._file.read(min(PIECE, info.end - at))
            yield piece
            at += max(len(piece), 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
