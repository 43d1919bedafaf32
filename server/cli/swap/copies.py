"""Many adapters out of one: the same tensors, other bytes, so that a server takes each for an adapter of its own."""

import json
import struct
from pathlib import Path

from peftserve.adapters.files import WEIGHTS

from ..adapters import files_of
from ..errors import CommandError

Part = tuple[str, tuple[str, bytes]]


class Copies:
    """Of the adapter in a folder, all of whose files are kept in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises CommandError if there is no adapter."""
        self._files = {name: path.read_bytes() for name, path in files_of(folder).items()}
        try:
            marked(self._files[WEIGHTS], "")
        except (ValueError, struct.error, AttributeError):
            raise CommandError(f"{folder}: {WEIGHTS} is no safetensors file") from None

    @property
    def num_bytes(self) -> int:
        """Of the files of one copy, nearly."""
        return sum(len(content) for content in self._files.values())

    def parts(self, mark: str) -> list[Part]:
        """The files of the copy with a mark, as httpx takes them for a form."""
        files = {**self._files, WEIGHTS: marked(self._files[WEIGHTS], mark)}
        return [("files", file) for file in files.items()]


def marked(weights: bytes, mark: str) -> bytes:
    """A safetensors file with a note in its header. Raises ValueError, struct.error, AttributeError if it is none."""
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    header["__metadata__"] = {**header.get("__metadata__", {}), "copy": mark}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, memoryview(weights)[8 + length :]])
