"""The header of a safetensors file, checked before anything else looks at the file.

    8 bytes: N, unsigned little-endian | N bytes of JSON | data, in which each tensor has a byte range

The ranges must fill the data exactly. Reads only the header, whatever the file's size; no torch and never pickle.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .errors import AdapterTooLarge, InvalidAdapter
from .files import WEIGHTS
from .strict_json import parse_object

MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 1 << 16
MAX_NAME_CHARS = 512
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 40

FLOATING = ("F32", "F16", "BF16")
CAST = (
    "F64",
    "F8_E4M3",
    "F8_E5M2",
    "F8_E4M3FNUZ",
    "F8_E5M2FNUZ",
    "F8_E8M0",
)  # floating too; PEFT casts them to float32
# Integers are the indices of sparse methods.
_OTHERS = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
ITEM_BYTES: Mapping[str, int] = _OTHERS | {dtype: 8 if dtype == "F64" else 1 for dtype in CAST}

# Files that are uploaded by mistake, by their first bytes.
_PICKLE = "a pickle file, which can run code when it is read; save the adapter as safetensors"
_MISTAKES: Mapping[bytes, str] = {
    b"PK\x03\x04": _PICKLE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
}


@dataclass(frozen=True)
class TensorInfo:
    """The header's entry for one tensor.

    dtype: as safetensors names it. start, end: byte range in the data, which follows the header.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check a file's header. Returns name to entry, in the order of the data.

    Raises InvalidAdapter, AdapterTooLarge, OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        length = _header_length(file.read(32), size)
        file.seek(8)
        header = parse_object(file.read(length), f"the header of {WEIGHTS}")
    return _tensors(header, size - 8 - length)


def _header_length(start: bytes, size: int) -> int:
    """Return the length of the JSON in bytes. start: the first bytes of a file of `size` bytes."""
    for magic, mistake in _MISTAKES.items():
        # A header of some thousand bytes can begin like a pickle; its JSON then follows.
        if start.startswith(magic) and start[8:9] != b"{":
            raise _invalid(f"is {mistake}")
    if size < 8:
        raise _invalid(f"has {size} bytes and no header; is it complete?")
    (length,) = struct.unpack("<Q", start[:8])
    if length > size - 8:
        raise _invalid(f"announces a header of {length} bytes but has {size} bytes in all; is it complete?")
    if length > MAX_HEADER_BYTES:
        raise AdapterTooLarge(f"the header of {WEIGHTS} is over {MAX_HEADER_BYTES} bytes", param="files")
    return int(length)


def _tensors(header: Mapping[str, Any], num_data_bytes: int) -> dict[str, TensorInfo]:
    entries = dict(header)
    _check_metadata(entries.pop("__metadata__", {}))
    if len(entries) > MAX_TENSORS:
        raise AdapterTooLarge(f"{WEIGHTS} holds {len(entries)} tensors; the limit is {MAX_TENSORS}", param="files")
    tensors = {name: _tensor(name, entry) for name, entry in entries.items()}
    # An empty tensor comes before the one that begins where it lies.
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    _check_ranges(ordered, num_data_bytes)
    return ordered


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _invalid("has a __metadata__ that is not an object of strings")


def _tensor(name: str, entry: Any) -> TensorInfo:
    if not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise _invalid(f"holds a tensor whose name is not 1 to {MAX_NAME_CHARS} printable characters: {name[:80]!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _invalid(f"describes {name} by something else than dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise _invalid(f"holds {name} as {str(dtype)[:20]}; served are {', '.join(ITEM_BYTES)}")
    if not _are_naturals(shape) or len(shape) > MAX_DIMENSIONS or prod(shape) > MAX_ELEMENTS:
        raise _invalid(f"gives {name} an impossible shape")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise _invalid(f"gives {name} impossible offsets")
    start, end = offsets
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise _invalid(f"gives {name} {end - start} bytes; its shape {shape} in {dtype} takes another number")
    return TensorInfo(dtype, tuple(shape), start, end)


def _check_ranges(ordered: Mapping[str, TensorInfo], num_data_bytes: int) -> None:
    position = 0
    for name, info in ordered.items():
        if info.start != position:
            raise _invalid(f"has a gap or an overlap before {name}")
        position = info.end
    if position != num_data_bytes:
        raise _invalid(f"has {num_data_bytes} bytes of data; its tensors take {position}. Is it complete?")


def _are_naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= MAX_ELEMENTS for item in value)


def _invalid(what: str) -> InvalidAdapter:
    return InvalidAdapter(f"{WEIGHTS} {what}", param="files")
