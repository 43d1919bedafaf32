"""Fingerprints of bases: digests of a checkpoint, the same wherever it lies and however it is loaded.

    config     config.json, without what does not change what the model is
    tensors    names, shapes and types of the stored tensors
    numbers    bytes of them, at some places of each

Read from the files and not from the model in memory, whose type is the operator's choice. Shards may be cut otherwise,
spaces in JSON be others: it is the same base. Files that are not safetensors are one tensor each.
"""

import hashlib
import json
import logging
import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ...model_files import ModelFiles, model_files
from ..private.transformers_private import cached_path

logger = logging.getLogger(__name__)

MOST_SAMPLED = 1024  # tensors of which bytes are read
PLACES = 8  # in each
PIECE = 64  # bytes at each place
_INDEX = "model.safetensors.index.json"
_SINGLE = ("model.safetensors", "pytorch_model.bin")
_OTHERS = ("*.safetensors", "*.bin", "*.gguf")
_OF_NO_MATTER = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache"})


class _Stored(NamedTuple):
    """One tensor in a file: bytes [start, end)."""

    name: str
    kind: str
    path: Path
    start: int
    end: int


def fingerprint(model: str) -> dict[str, str]:
    """Return the digests by their names above; none, with a warning, where the files cannot be read.

    model: a folder, or a hub id whose files have been loaded.
    """
    try:
        return _fingerprint(model)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        logger.warning("which base this is cannot be told from its files (%s): adapters are not bound to it", error)
        return {}


def _fingerprint(model: str) -> dict[str, str]:
    files = model_files(model)
    config = _file(files.place, "config.json") if files.gguf is None else None
    tensors = sorted(_tensors(_weights(files)), key=lambda tensor: tensor.name)
    return {
        "config": _digest([_canonical(json.loads(config.read_bytes()))] if config is not None else []),
        "tensors": _digest(f"{tensor.name} {tensor.kind}".encode() for tensor in tensors),
        "numbers": _digest(_samples(_some(tensors))),
    }


def _file(model: str, name: str) -> Path | None:
    """Find a file of the checkpoint, in its folder or in the hub's cache."""
    if os.path.isdir(model):
        path = Path(model, name)
        return path if path.is_file() else None
    found = cached_path(model, name)
    return None if found is None else Path(found)


def _weights(files: ModelFiles) -> list[Path]:
    model = files.place
    if files.gguf is not None:
        found = _file(model, files.gguf)
        return [] if found is None else [found]
    index = _file(model, _INDEX)
    if index is not None:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        return [path for shard in shards if (path := _file(model, shard)) is not None]
    single = next((path for name in _SINGLE if (path := _file(model, name)) is not None), None)
    if single is not None:
        return [single]
    kinds = (sorted(Path(model).glob(kind)) for kind in _OTHERS if os.path.isdir(model))
    return next(([path for path in found if not path.name.startswith("adapter_")] for found in kinds if found), [])


def _tensors(paths: Iterable[Path]) -> Iterator[_Stored]:
    for path in paths:
        size = path.stat().st_size
        if path.suffix != ".safetensors":
            yield _Stored(path.name, str(size), path, 0, size)
            continue
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, size)))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = (8 + length + offset for offset in entry["data_offsets"])
                yield _Stored(name, f"{entry['dtype']} {entry['shape']}", path, start, end)


def _some(tensors: list[_Stored]) -> list[_Stored]:
    """Return all tensors, or evenly spaced ones if they are more than `MOST_SAMPLED`."""
    step = -(-len(tensors) // MOST_SAMPLED) or 1
    return list(islice(tensors, 0, None, step))


def _samples(tensors: Iterable[_Stored]) -> Iterator[bytes]:
    for tensor in tensors:
        room = max(tensor.end - tensor.start - PIECE, 0)
        with tensor.path.open("rb", buffering=0) as file:
            for place in range(PLACES):
                file.seek(tensor.start + room * place // (PLACES - 1))
                yield file.read(min(PIECE, tensor.end - tensor.start))


def _canonical(config: Any) -> bytes:
    return json.dumps(_what_matters(config), sort_keys=True).encode()


def _what_matters(value: Any) -> Any:
    """Drop the fields that do not matter, of the configurations inside this one as well."""
    if not isinstance(value, dict):
        return value
    return {name: _what_matters(entry) for name, entry in value.items() if name not in _OF_NO_MATTER}


def _digest(pieces: Iterable[bytes]) -> str:
    """Hash all pieces, each with its length before it, so that no two lists of pieces read alike."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
