"""The work of `peftserve state` on a state folder: check all of it, mend it, or copy it while a server uses it.

A check and a copy change nothing and need no lock; a repair needs the folder for itself. Each reads every byte of every
adapter. Knows the layout of the folder; knows no server.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import registry_file
from .base_binding import FILE as BASE_FILE
from .errors import StateUnusable
from .files import content_digest
from .folders import fsync_folder, make_folder
from .names import Reference, VersionRef
from .records import FOLDER as RECORDS
from .records import VersionRecords
from .recovery import open_registry
from .registry import AdapterRegistry
from .registry_reader import AdapterRecord
from .registry_repair import all_rows, parse_row
from .store import ADAPTERS, AdapterStore

SETTLING_SECONDS = 0.5

Watch = Callable[[list[str]], Iterable[str]]
"""Passes digests on, and may show how far it is."""


@dataclass
class Report:
    """The outcome of a check, a repair or a backup.

    whole: versions that can be served. damaged: those that cannot. found: one sentence for each other finding.
    """

    whole: list[VersionRef] = field(default_factory=list)
    damaged: list[VersionRef] = field(default_factory=list)
    found: list[str] = field(default_factory=list)


def check(root: Path, watch: Watch = iter) -> Report:
    """Check the whole folder, and change nothing. Raises StateUnusable, OSError.

    watch: is given the digests, and may show the progress.
    """
    report = Report()
    # Listed before the rows are read: files that a running server stores or deletes meanwhile are no finding.
    stored = set(os.listdir(root / ADAPTERS)) if (root / ADAPTERS).is_dir() else set()
    path = root / registry_file.NAME
    fault = registry_file.fault_of(path) or ("is missing" if stored and not path.exists() else None)
    if fault is not None:
        report.found.append(f"The registry of adapters {fault}. A repair, or a start, makes it anew.")
    if fault is not None or not path.exists():
        return report
    with registry_file.translate_errors(), closing(registry_file.existing(path)) as db:
        rows = [parse_row(row) for row in all_rows(db)]
        kept = registry_file.disposable_in(db) | registry_file.restorable_in(db)
    records = [row for row in rows if row is not None]
    if len(records) < len(rows):
        report.found.append(f"Rows of the registry of adapters that make no sense: {len(rows) - len(records)}.")
    _sort(root, records, report, watch)
    known = kept.union(record.digest for record in records)
    unknown = (name for name in sorted(stored - known) if _is_unknown(root, name))
    report.found += [f"No version has the files in {ADAPTERS}/{name}." for name in unknown]
    report.found += _disagreements(root, records)
    return report


def repair(root: Path, watch: Watch = iter) -> Report:
    """Mend what can be mended, and set aside what is damaged. Raises AdapterConflict while a server runs."""
    report = Report()
    with closing(AdapterStore(root)) as store, open_registry(root, store, thorough=True) as (registry, recovery):
        report.found += recovery.findings
        _sort(root, _all(registry), report, watch)
        for digest in sorted({ref.digest for ref in report.damaged if store.has(ref.digest)}):
            report.found.append(f"Damaged files of an adapter lie in {store.quarantine(store.path(digest))} now.")
    return report


def back_up(root: Path, target: Path, watch: Watch = iter) -> Report:
    """Copy all versions as of one moment to a new state folder, whole or not at all, also while a server runs.

    Damaged files are left out, and their versions are copied. Raises StateUnusable, OSError.
    """
    path = root / registry_file.NAME
    if target.exists():
        raise StateUnusable(f"there is a {str(target)!r} already; choose another place for the backup")
    if (fault := registry_file.fault_of(path) or (None if path.exists() else "is missing")) is not None:
        raise StateUnusable(f"the registry of adapters {fault}; mend it first, with `peftserve state repair`")
    make_folder(target.parent, mode=0o777)
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    new.mkdir(mode=0o700)
    try:
        report = _copy(root, new, watch)
        os.sync()
        os.rename(new, target)
        fsync_folder(target.parent)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    return report


def _copy(root: Path, new: Path, watch: Watch) -> Report:
    report, records = Report(), VersionRecords(new / RECORDS)
    for file in [root / BASE_FILE, *(root / RECORDS).glob("*.gone")]:
        with suppress(FileNotFoundError):  # of a name of which a newer version has come, with a record of its own
            shutil.copyfile(file, new / file.relative_to(root))
    registry_file.copy_to(root / registry_file.NAME, new / registry_file.NAME)
    with closing(AdapterRegistry(new / registry_file.NAME, records)) as registry:
        with registry.transaction() as db:
            db.execute("DELETE FROM deleted")  # their files are not copied
        for digest in watch(sorted({record.digest for record in _all(registry)})):
            _copy_folder(root / ADAPTERS / digest, new / ADAPTERS / digest)
        _sort(new, _all(registry), report, iter, now=root)
        there = {*report.whole, *report.damaged}
        for ref in [ref for ref in registry.refs() if ref not in there]:
            registry.delete(ref.name, ref.version)
        records.write(_all(registry))
        records.default_set(registry.get_default())
    for path in (new / ADAPTERS).glob("*"):
        if path.name not in {ref.digest for ref in report.whole}:
            shutil.rmtree(path)
    return report


def _copy_folder(source: Path, target: Path) -> None:
    """Copy as much as is there; whether it is whole is checked afterwards."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        shutil.copytree(source, target, symlinks=True)
    except (OSError, shutil.Error):
        target.mkdir(exist_ok=True)


def _sort(root: Path, records: list[AdapterRecord], report: Report, watch: Watch, now: Path | None = None) -> None:
    """Sort versions into whole and damaged ones, by all bytes of their files.

    now: the folder to ask whether a version still exists; one that was deleted meanwhile is in neither list.
    """
    digests = watch(sorted({record.digest for record in records}))
    whole = {digest for digest in digests if _is_whole(root / ADAPTERS / digest)}
    for record in records:
        if record.digest in whole:
            report.whole.append(record.ref)
        elif _exists(now or root, record.ref):
            report.damaged.append(record.ref)


def _is_whole(folder: Path) -> bool:
    """Return whether a folder's content has the digest that it is named by. What cannot be read is damaged."""
    try:
        return content_digest(folder) == folder.name
    except OSError:
        return False


def _is_unknown(root: Path, name: str) -> bool:
    """Return whether no version has the files of this name.

    The registry is asked before and after a look at the folder: an upload or a deletion under way is no finding.
    """
    return not _is_known(root, name) and (root / ADAPTERS / name).exists() and not _is_known(root, name)


def _is_known(root: Path, digest: str) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM versions WHERE digest = ?)"
    with registry_file.translate_errors(), closing(registry_file.existing(root / registry_file.NAME)) as db:
        kept = registry_file.disposable_in(db) | registry_file.restorable_in(db)
        return bool(db.execute(query, (digest,)).fetchone()[0]) or digest in kept


def _exists(root: Path, ref: VersionRef) -> bool:
    query = "SELECT EXISTS (SELECT 1 FROM versions WHERE name = ? AND version = ?)"
    with registry_file.translate_errors(), closing(registry_file.existing(root / registry_file.NAME)) as db:
        return bool(db.execute(query, (ref.name, ref.version)).fetchone()[0])


def _disagreements(root: Path, rows: list[AdapterRecord]) -> list[str]:
    """Return a sentence for each difference between the rows and the records beside them."""
    if not (root / RECORDS).is_dir():
        return []  # an older release's: the next start writes them
    records = VersionRecords(root / RECORDS)
    wrong = [row for row in rows if _record_of(records, row) != row]
    if wrong:
        time.sleep(SETTLING_SECONDS)  # a server may have been between a version's row and its record
        wrong = [row for row in wrong if _record_of(records, row) != row and _exists(root, row.ref)]
    lost = records.listing().here - {Reference(row.name, row.version) for row in rows}
    lost = {
        reference for reference in lost if not _exists(root, VersionRef(reference.name, reference.version or 0, ""))
    }
    return [
        *(f"The record of {row.ref} beside the registry does not agree with it." for row in wrong),
        *(f"The registry has lost {name}@{version}, of which there is a record." for name, version in sorted(lost)),
    ]


def _record_of(records: VersionRecords, row: AdapterRecord) -> AdapterRecord | None:
    return records.read(Reference(row.name, row.version))


def _all(registry: AdapterRegistry) -> list[AdapterRecord]:
    return [registry.get(ref.name, ref.version) for ref in registry.refs()]
