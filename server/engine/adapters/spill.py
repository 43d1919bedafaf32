"""Compiled adapters that the host had no room for, kept on disk so that the next load need not compile them.

They last as long as the engine: the next one's base may be another. A file is

    8 bytes: N, unsigned little-endian | N bytes of msgpack: the layout | the data, as in `Blob`

Its CRC-32 is kept in memory: what the disk has changed is not used.
"""

import logging
import os
import shutil
import struct
import sys
import threading
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import msgspec
import torch

from .host_tier import digest_of
from .loader import use_one_core
from .packing import AdapterLayout, Blob

logger = logging.getLogger(__name__)

MOST_WAITING = 4  # blobs, which take memory until they are written; others are not written this time
NICENESS = 10  # nobody waits for a write
LEAST_FREE = 0.1  # of the disk, and no more than
MOST_FREE = 16 << 30  # bytes: what is below that is left to others


class Spill:
    """A cache of blobs on disk. Never raises for a disk that fails: it forgets the blob.

    Writes on a thread of its own and reads on the caller's.
    folder: its own, deleted now and made when it is needed; None keeps nothing. max_bytes: of all of it. dtype, pin: of
        the blobs.
    """

    def __init__(self, folder: Path | None, max_bytes: int, dtype: torch.dtype, *, pin: bool = False) -> None:
        self.num_bytes = 0
        self.num_damaged = 0  # files that were not what was written
        self._folder = folder
        self._max_bytes = max_bytes
        self._dtype = dtype
        self._pin = pin
        self._written: dict[str, dict[str, int]] = {}  # by digest: keys and the bytes of each
        self._sums: dict[str, int] = {}  # by key: the CRC-32 of its file
        self._waiting: set[str] = set()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="adapter-spill", initializer=_give_way)
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_to_plain)
        self._decoder = msgspec.msgpack.Decoder(AdapterLayout, dec_hook=_from_plain)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def __contains__(self, key: str) -> bool:
        return key in self._written.get(digest_of(key), ())

    def keep(self, key: str, blob: Blob) -> None:
        """Queue a blob to be written, unless it is there already or shares pieces with others."""
        if self._folder is None or blob.shared or key in self or key in self._waiting:
            return
        if len(self._waiting) < MOST_WAITING:
            self._waiting.add(key)
            self._worker.submit(self._write, key, blob)

    def read(self, key: str) -> Blob | None:
        """Return a blob that was written; None if it was not, or is damaged."""
        if (checksum := self._sums.get(key)) is None:
            return None
        try:
            with self._path(key).open("rb", buffering=0) as file:
                return self._read(file, checksum)
        except (OSError, EOFError, struct.error, msgspec.MsgspecError) as error:
            logger.warning("a compiled adapter on the disk is damaged (%s), and is compiled again", error)
        self.num_damaged += 1
        self._worker.submit(self._delete, digest_of(key))
        return None

    def forget(self, digest: str) -> Future[None]:
        """Delete an adapter's blobs. The future is done when none is on the disk."""
        if digest not in self._written and not self._waiting:
            nothing: Future[None] = Future()
            nothing.set_result(None)
            return nothing
        return self._worker.submit(self._delete, digest)

    def close(self) -> None:
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        assert self._folder is not None
        return self._folder / key.replace(":", ".")

    def _read(self, file: FileIO, checksum: int) -> Blob:
        """Return the blob in a file. Raises EOFError for a file that is not what was written."""
        size = os.fstat(file.fileno()).st_size - 8
        head = file.read(8)
        (length,) = struct.unpack("<Q", head)
        if length > size:
            raise EOFError("it is too short")
        text = file.read(length)
        data = torch.empty((size - length) // self._dtype.itemsize, dtype=self._dtype, pin_memory=self._pin)
        view, done = _bytes(data), 0
        while done < len(view):
            if not (count := file.readinto(view[done:])):
                raise EOFError("it is too short")
            done += count
        if _checksum(head, text, view) != checksum:
            raise EOFError("its checksum is another")
        return Blob(data, self._decoder.decode(text))

    # On the worker's thread

    def _write(self, key: str, blob: Blob) -> None:
        try:
            text = self._encoder.encode(blob.layout)
            # What some primitive has as a tuple may come back as a list.
            if self._decoder.decode(text) == blob.layout and self._has_room(blob):
                head, data = struct.pack("<Q", len(text)), _bytes(blob.data)
                self._write_file(self._path(key), head, text, data)
                self._sums[key] = _checksum(head, text, data)
                self._written.setdefault(digest_of(key), {})[key] = blob.num_bytes
                self.num_bytes += blob.num_bytes
        except (OSError, TypeError) as error:
            logger.warning("a compiled adapter is not kept on disk: %s", error)
        finally:
            self._waiting.discard(key)

    def _has_room(self, blob: Blob) -> bool:
        assert self._folder is not None
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        usage = shutil.disk_usage(self._folder)
        left_to_others = min(LEAST_FREE * usage.total, MOST_FREE)
        return self.num_bytes + blob.num_bytes <= self._max_bytes and usage.free > left_to_others

    def _write_file(self, path: Path, *pieces: bytes | memoryview) -> None:
        try:
            with path.open("wb", buffering=0) as file:
                for piece in pieces:
                    _write_all(file, piece)
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def _delete(self, digest: str) -> None:
        for key, size in self._written.pop(digest, {}).items():
            self.num_bytes -= size
            self._sums.pop(key, None)
            self._path(key).unlink(missing_ok=True)


def _give_way() -> None:
    """Lower this thread's priority. Not for one that compiles: steps may wait for it to leave the interpreter."""
    use_one_core()
    if sys.platform == "linux":  # elsewhere priorities are the process's
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), os.nice(0) + NICENESS)


def _bytes(data: torch.Tensor) -> memoryview:
    return data.view(torch.uint8).numpy().data


def _checksum(*pieces: bytes | memoryview) -> int:
    checksum = 0
    for piece in pieces:
        checksum = zlib.crc32(piece, checksum)
    return checksum


def _write_all(file: FileIO, piece: bytes | memoryview) -> None:
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _to_plain(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    raise TypeError(f"a layout with a {type(value).__name__}")


def _from_plain(kind: type, value: Any) -> Any:
    return torch.Size(value) if kind is torch.Size else getattr(torch, value)
