"""Write a checkpoint's tensors into safetensors shards, in any order, without holding a shard.

The names, types and shapes are known before the first number: so headers come first, and each tensor is written at its
place. Knows no model.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import torch

from .stored import DTYPES, INDEX, SINGLE

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_BYTES_AT_ONCE = 64 << 20


@dataclass(frozen=True)
class Entry:
    """One tensor to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ShardWriter:
    """The shards of one checkpoint, in a folder that is there; used as a context.

    entries: all tensors. max_bytes: of a shard's data; a larger tensor has a shard of its own.
    """

    def __init__(self, folder: Path, entries: Sequence[Entry], max_bytes: int) -> None:
        self._folder = folder
        self._entries = {entry.name: entry for entry in entries}
        assert len(self._entries) == len(entries)
        self._shards = list(_divided(entries, max_bytes))
        self._places: dict[str, tuple[int, int]] = {}  # name to file descriptor and offset
        self._left = set(self._entries)
        self._open: list[int] = []

    def __enter__(self) -> "ShardWriter":
        for path, shard in zip(self._paths(), self._shards, strict=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            self._open.append(fd)
            self._begin(fd, shard)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        for fd in self._open:
            if kind is None:
                os.fsync(fd)
            os.close(fd)
        if kind is None:
            assert not self._left, f"not written: {sorted(self._left)[:5]}"
            self._write_index()

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor, of the shape that was announced, rounded to the type that was. Raises OSError."""
        entry = self._entries[name]
        assert tuple(tensor.shape) == entry.shape, f"{name} has the shape {tuple(tensor.shape)}, not {entry.shape}"
        flat = tensor.reshape(-1)
        rows = max(1, _BYTES_AT_ONCE // entry.dtype.itemsize)
        self.write_pieces(name, (_bytes(piece.to(entry.dtype)) for piece in flat.split(rows) if piece.numel()))

    def write_pieces(self, name: str, pieces: Iterable[bytes | memoryview]) -> None:
        """Write a tensor as its bytes, in pieces that follow each other. Raises OSError."""
        fd, offset = self._places[name]
        end = offset + self._entries[name].num_bytes
        for piece in pieces:
            view = memoryview(piece)
            while len(view):
                done = os.pwrite(fd, view, offset)
                view, offset = view[done:], offset + done
        assert offset == end, f"{name} was written with other bytes than announced"
        self._left.remove(name)

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._entries.values())

    def _paths(self) -> Iterator[Path]:
        count = len(self._shards)
        for index in range(count):
            name = SINGLE if count == 1 else f"model-{index + 1:05}-of-{count:05}.safetensors"
            yield self._folder / name

    def _begin(self, fd: int, shard: Sequence[Entry]) -> None:
        """Write a shard's header. Wide types come first, so that every tensor is aligned."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        places, end = {}, 0
        for entry in sorted(shard, key=lambda entry: -entry.dtype.itemsize):
            places[entry.name], begin = end, end
            end += entry.num_bytes
            header[entry.name] = {
                "dtype": _NAMES[entry.dtype],
                "shape": list(entry.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        os.truncate(fd, 8 + len(text) + end)
        os.pwrite(fd, len(text).to_bytes(8, "little") + text, 0)
        self._places |= {name: (fd, 8 + len(text) + place) for name, place in places.items()}

    def _write_index(self) -> None:
        if len(self._shards) == 1:
            return
        files = zip(self._paths(), self._shards, strict=True)
        total = sum(math.prod(entry.shape) for entry in self._entries.values())
        index = {
            "metadata": {"total_parameters": total, "total_size": self.num_bytes},
            "weight_map": {entry.name: path.name for path, shard in files for entry in shard},
        }
        (self._folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _divided(entries: Sequence[Entry], max_bytes: int) -> Iterator[Sequence[Entry]]:
    shard: list[Entry] = []
    size = 0
    for entry in entries:
        if shard and size + entry.num_bytes > max_bytes:
            yield shard
            shard, size = [], 0
        shard.append(entry)
        size += entry.num_bytes
    yield shard


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.contiguous().view(torch.uint8).numpy().data


def stored_names(entries: Iterable[Entry]) -> Mapping[str, torch.Tensor]:
    """Return the tensors to be written, without their numbers."""
    return {entry.name: torch.empty(entry.shape, dtype=entry.dtype, device="meta") for entry in entries}
