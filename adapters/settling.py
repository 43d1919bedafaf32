"""An upload's files brought to the form in which adapters are stored: see `files`.

Folders around the adapter go; weights in several files become one; what belongs to none of the experts that the
configuration names is dropped, as are checkpoints beside the adapter.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from .errors import InvalidAdapter
from .files import COMPANIONS, CONFIG, WEIGHTS, expert_folder, experts_of
from .merging.writer import Entry, TensorWriter
from .peft.listing import listed
from .safetensors_header import TensorInfo, read_header
from .strict_json import parse_object
from .upload_names import INDEX, is_shard, is_whole

_BLOCK = 1 << 24  # bytes of a tensor that are copied at once
_MAX_INDEX = 1 << 24
_ASIDE = ".sent"  # which no folder of an upload is called


def settle(folder: Path) -> bool:
    """Bring the files of an upload into order. Returns whether that has changed any. Raises AdapterError, OSError."""
    changed = _promote(folder)
    changed = _drop_others(folder) or changed
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        changed = _join(place) or changed
    return changed


def _promote(folder: Path) -> bool:
    """Move the files of the one adapter that was sent, however deep, to where they belong. Raises InvalidAdapter."""
    if (folder / CONFIG).is_file() or (root := _root(folder)) is None:
        return False
    for expert in experts_of(root):
        if not (root / expert).exists() and (beside := expert_folder(root, expert)).is_dir():
            beside.rename(root / expert)
    aside = root.rename(folder / _ASIDE)
    for path in list(folder.iterdir()):
        if path != aside:
            _delete(path)
    for path in list(aside.iterdir()):
        path.rename(folder / path.name)
    aside.rmdir()
    return True


def _root(folder: Path) -> Path | None:
    """Return the folder of the adapter among those that were sent: the outermost one, or the one that has experts.

    None where there is none. Raises InvalidAdapter for several.
    """
    found = sorted((path.parent for path in folder.rglob(CONFIG)), key=lambda path: (len(path.parts), path))
    tops = [path for path in found if len(path.parts) == len(found[0].parts)]
    if len(tops) > 1:
        names = {path.name for path in tops}
        tops = [path for path in tops if (experts := experts_of(path)) and names.issuperset(experts)] or tops
    if len(tops) > 1:
        shown = [path.relative_to(folder).as_posix() for path in tops]
        raise InvalidAdapter(
            f"the upload holds several adapters, in {listed(shown)}; send the files of one of them", param="files"
        )
    return tops[0] if tops else None


def _drop_others(folder: Path) -> bool:
    """Delete the folders of no expert, and in those of experts what experts do not have. Returns whether any are."""
    inner = [path for path in folder.iterdir() if path.is_dir()]
    if not inner or not (folder / CONFIG).is_file():
        return False
    named = experts_of(folder)
    others = [path for path in inner if path.name not in named]
    experts = (path for place in inner if place.name in named for path in place.iterdir())
    others += [path for path in experts if path.is_dir() or path.name in COMPANIONS]
    for path in others:
        _delete(path)
    return bool(others)


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _join(folder: Path) -> bool:
    """Make one file of weights that came in several, in the order of their names. Raises InvalidAdapter."""
    shards = sorted(path for path in folder.iterdir() if is_shard(path.name))
    index = folder / INDEX
    if not shards and not index.is_file():
        return False
    if shards and not (folder / WEIGHTS).exists():
        headers = {shard: read_header(shard) for shard in shards}
        _check_index(index, headers)
        _write(folder / WEIGHTS, headers)
    for path in [*shards, index]:
        path.unlink(missing_ok=True)
    return True


def _check_index(index: Path, headers: Mapping[Path, Mapping[str, TensorInfo]]) -> None:
    found: dict[str, str] = {}
    for shard, header in headers.items():
        if twice := found.keys() & header.keys():
            raise InvalidAdapter(f"{shard.name} and {found[min(twice)]} both hold {min(twice)!r}", param="files")
        found |= dict.fromkeys(header, shard.name)
    if not index.is_file():
        if is_whole([shard.name for shard in headers]):
            return
        raise InvalidAdapter(f"{INDEX} is missing, which says what the files of weights hold", param="files")
    if index.stat().st_size > _MAX_INDEX:
        raise InvalidAdapter(f"{INDEX} is over {_MAX_INDEX} bytes", param="files")
    named = parse_object(index.read_bytes(), INDEX).get("weight_map")
    sent = {shard.name for shard in headers}
    if isinstance(named, dict) and (lost := sorted({str(name) for name in named.values()} - sent)):
        raise InvalidAdapter(f"{INDEX} names files of weights that are missing: {listed(lost)}", param="files")
    if not isinstance(named, dict) or named != found:
        wrong = sorted(set(found.items()) ^ set(named.items() if isinstance(named, dict) else ()), key=str)
        raise InvalidAdapter(f"{INDEX} does not say what the files hold; look at {str(wrong[:1])[:200]}", param="files")


def shards_of(index: Path) -> list[str]:
    """Return the names of the files of weights that an index names. Raises InvalidAdapter, OSError."""
    named = parse_object(index.read_bytes()[: _MAX_INDEX + 1], INDEX).get("weight_map")
    names = sorted({str(name) for name in named.values()}) if isinstance(named, dict) else []
    if not names or not all(map(is_shard, names)):
        raise InvalidAdapter(f"{INDEX} names no files of weights", param="files")
    return names


def _write(target: Path, headers: Mapping[Path, Mapping[str, TensorInfo]]) -> None:
    entries = {key: Entry(info.dtype, info.shape) for header in headers.values() for key, info in header.items()}
    with TensorWriter(target, entries) as writer:
        for shard, header in headers.items():
            with shard.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
                for key, info in header.items():
                    for offset in range(0, max(info.end - info.start, 1), _BLOCK):
                        file.seek(start + info.start + offset)
                        writer.write(key, file.read(min(_BLOCK, info.end - info.start - offset)), offset)
