"""Copies of one adapter: the same tensors, other bytes, so that a server takes each for an adapter of its own."""

import json
import struct
from pathlib import Path

from peftserve.adapters.files import WEIGHTS
from peftserve.server.cli.adapters import files_of
from peftserve.server.cli.errors import CommandError

FormFile = tuple[str, tuple[str, bytes]]  # (field, (file name, content))


class Copies:
    """A source of copies of the adapter in a folder, whose files are kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises CommandError if the folder holds no adapter."""
        self._files = {name: path.read_bytes() for name, path in files_of(folder).items()}
        try:
            marked(self._files[WEIGHTS], "")
        except (ValueError, struct.error, AttributeError):
            raise CommandError(f"{folder}: {WEIGHTS} is no safetensors file") from None

    @property
    def num_bytes(self) -> int:
        """Return the bytes of the files of one copy, but for its mark."""
        return sum(len(content) for content in self._files.values())

    def form(self, mark: str) -> list[FormFile]:
        """Return the files of the copy with this mark, as httpx takes them for a form."""
        files = {**self._files, WEIGHTS: marked(self._files[WEIGHTS], mark)}
        return [("files", file) for file in files.items()]


def marked(weights: bytes, mark: str) -> bytes:
    """Return a safetensors file with a mark in its header.

    Raises ValueError, struct.error or AttributeError if `weights` is no safetensors file.
    """
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), "copy": mark}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, memoryview(weights)[8 + length :]])
