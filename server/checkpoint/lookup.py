"""Find the adapters of a merge: by name in a state folder, or in folders of their own."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from peftserve.adapters import base_binding, registry_file
from peftserve.adapters.names import parse_reference
from peftserve.adapters.registry_reader import AdapterRecord, RegistryReader
from peftserve.adapters.store import ADAPTERS

from ..engine.model.fingerprint import fingerprint
from .errors import MergeRefused
from .members import Chosen


class Asked(NamedTuple):
    """An adapter as it was asked for: a name, `name@version` or a folder, and its weight."""

    text: str
    weight: float


def find_adapters(asked: Sequence[Asked], state: Path, model: str, known: Mapping[str, Path]) -> list[Chosen]:
    """Return the adapters that were asked for. A name comes first, and then a folder.

    state: a state folder, which need not be there. model: the base's folder or hub id. known: folders that have names
    without a state folder. Raises MergeRefused if there is no such adapter, or if it was made for another base.
    """
    registry = state / registry_file.NAME
    if not registry.is_file():
        return [_without_registry(one, known, state) for one in asked]
    with registry_file.translate_errors(), closing(RegistryReader(registry_file.existing(registry))) as reader:
        found = {one.text: record for one in asked if (record := _record(one, reader)) is not None}
    if found:
        _check_base(state, model)
    return [
        _chosen(one, found[one.text], state) if one.text in found else _without_registry(one, known, state)
        for one in asked
    ]


def _record(one: Asked, reader: RegistryReader) -> AdapterRecord | None:
    reference = parse_reference(one.text)
    return None if reference is None else reader.find(reference.name, reference.version)


def _chosen(one: Asked, record: AdapterRecord, state: Path) -> Chosen:
    return Chosen(str(record.ref), state / ADAPTERS / record.digest, one.weight)


def _without_registry(one: Asked, known: Mapping[str, Path], state: Path) -> Chosen:
    if one.text in known:
        return Chosen(one.text, known[one.text], one.weight)
    folder = Path(one.text).expanduser()
    if not folder.is_dir():
        raise MergeRefused(
            f"--adapter {one.text}: there is neither an adapter of that name in {str(state)!r} nor such a folder"
        )
    return Chosen(folder.resolve().name, folder, one.weight)


def _check_base(state: Path, model: str) -> None:
    """Raise MergeRefused if the adapters of a state folder were made for another base."""
    bound, own = base_binding.read(state), fingerprint(model)
    if bound is not None and any(bound.fingerprint.get(part) != digest for part, digest in own.items()):
        raise MergeRefused(
            f"the adapters in {str(state)!r} were made for another base, {bound.model!r}; name that one, choose "
            "another --state-dir, or give the adapters by their folders"
        )
