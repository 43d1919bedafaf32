"""The tensors of a base's checkpoint as they lie in its files, read one at a time.

Read by offset rather than mapped into memory: what a merge holds is what it has read. Knows no model.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..model_files import model_files
from .errors import MergeRefused

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_PIECE = 16 << 20
_MOST_HEADER_BYTES = 100_000_000  # safetensors' own limit
_WANTED = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py", "*.tiktoken"]


@dataclass(frozen=True)
class Stored:
    """One tensor in a file. offset: of its first byte in the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> torch.Tensor:
        """Read the tensor. Raises MergeRefused if the file ends before it does, OSError."""
        data = torch.empty(self.num_bytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, done = memoryview(data.numpy().data), 0
            while done < len(view):
                if not (got := file.readinto(view[done:])):
                    raise MergeRefused(f"{self.path.name} ends too early; is the checkpoint complete?")
                done += got
        return data.view(self.dtype).view(self.shape)

    def pieces(self) -> Iterator[bytes]:
        """Iterate over the bytes of the tensor. Raises MergeRefused, OSError."""
        left = self.num_bytes
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                if not (piece := file.read(min(left, _PIECE))):
                    raise MergeRefused(f"{self.path.name} ends too early; is the checkpoint complete?")
                left -= len(piece)
                yield piece

    def __getitem__(self, _: object) -> torch.Tensor:
        """Read it, whatever the index: this is how transformers takes a tensor from a file."""
        return self.read()

    def empty(self) -> torch.Tensor:
        """Return a tensor of this kind without memory."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def checkpoint_folder(model: str) -> Path:
    """Return the folder of a checkpoint; a hub's model is fetched into the cache. Raises MergeRefused."""
    if (file := model_files(model).gguf) is not None:
        raise MergeRefused(f"{file} is a GGUF file: take the checkpoint in Hugging Face format that it was made of")
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise MergeRefused(
            f"there is no folder {model!r}, and no model of that name comes from the hub: {error}"
        ) from None


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a checkpoint by their names in it. Raises MergeRefused, OSError."""
    found: dict[str, Stored] = {}
    for path in _files(folder):
        found |= _header(path)
    if not found:
        raise MergeRefused(f"the checkpoint in {folder.name} holds no tensors")
    return found


def _files(folder: Path) -> list[Path]:
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MergeRefused(f"{INDEX} in {folder.name} cannot be read") from None
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise MergeRefused(f"{folder.name} lacks {missing[0]}, which its index names; is the checkpoint complete?")
        return [folder / name for name in names]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    raise MergeRefused(
        f"{folder.name} holds no {SINGLE}: only safetensors are merged; load a checkpoint of another kind with "
        "transformers and save it by save_pretrained"
    )


def _header(path: Path) -> dict[str, Stored]:
    """Read the header of a file: 8 bytes of length, then JSON, then the data."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_HEADER_BYTES:
                raise ValueError("its header is too long")
            header: dict[str, Any] = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(path, entry, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MergeRefused(f"{path.name} cannot be read as safetensors: {error}") from None


def _entry(path: Path, entry: Mapping[str, Any], begin: int) -> Stored:
    dtype, shape, offsets = entry["dtype"], tuple(map(int, entry["shape"])), entry["data_offsets"]
    if dtype not in DTYPES:
        raise MergeRefused(f"{path.name} holds tensors of the type {dtype}, which cannot be merged")
    stored = Stored(path, DTYPES[dtype], shape, begin + int(offsets[0]))
    if stored.num_bytes != int(offsets[1]) - int(offsets[0]):
        raise ValueError("a tensor takes another number of bytes than its shape says")
    return stored
