"""The work of a start, or a repair, before any request: files, records and rows are brought to agree.

Only what the registry has marked as disposable is deleted. Whatever else belongs to no version is moved to
`lost+found`, and a version whose files are missing stays, so that its requests are told so. Knows the store, the
registry and the records; knows no requests.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import registry_file
from .folders import fsync_folder
from .names import Reference, VersionRef
from .records import FOLDER, VersionRecords
from .registry import AdapterRegistry
from .registry_reader import AdapterRecord
from .registry_repair import parse_row, remove_malformed, replace, restore
from .routing.policies import targets_of
from .routing.stored import FOLDER as ROUTES
from .routing.stored import settle_routes
from .store import AdapterStore
from .stored_settings import FOLDER as SETTINGS
from .stored_settings import settle_settings

logger = logging.getLogger(__name__)

MOST_NAMED = 5
UNFINISHED = "registry.unfinished"
"""Is there from before a registry is made until all that can be brought back to it is: until then no file beside it is
left over from a deletion."""
FILES_GONE = "its files are gone from the server's disk"


@dataclass
class Recovery:
    """The outcome. lost: versions whose files are missing. findings: one sentence for each thing that was mended."""

    lost: list[VersionRef] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def report(self, sentence: str) -> None:
        """Log a finding and keep it."""
        logger.warning("%s", sentence)
        self.findings.append(sentence)


@contextmanager
def open_registry(
    root: Path, store: AdapterStore, *, thorough: bool = False
) -> Iterator[tuple[AdapterRegistry, Recovery]]:
    """Open the registry of the state folder `root`, brought to agree with the files beside it; close it at the end.

    store: of the same folder, which nobody else uses. thorough: read each record, too, which is slow on a slow disk.
    Raises StateUnusable, OSError.
    """
    recovery, records = Recovery(), VersionRecords(root / FOLDER)
    store.clear_staging()
    records.clear_half_written()
    path, unfinished = root / registry_file.NAME, root / UNFINISHED
    rows = _set_aside_damaged(path, store, recovery, made_here=unfinished.exists())
    if not path.exists():
        unfinished.touch(mode=0o600)
        fsync_folder(root)
    is_new = unfinished.exists()
    with closing(AdapterRegistry(path, records)) as registry, registry_file.translate_errors():
        for row in remove_malformed(registry):
            place = store.quarantine_text("row.json", _as_text(row))
            recovery.report(f"A row of the registry of adapters made no sense; it lies in {place} now.")
        lost_routes = settle_routes(registry, targets_of, root / ROUTES, is_new=is_new)
        if lost_routes:
            recovery.report(f"The registry had lost {len(lost_routes)} routes, such as {lost_routes[0]}: back again.")
        _bring_back(registry, records, store, recovery, rows, records.read_default() if is_new else None)
        settle_settings(registry, root / SETTINGS, is_new=is_new)
        _settle(registry, records, store, recovery, thorough)
        _place_unknown(registry, store, recovery)
        recovery.lost = [ref for ref in registry.refs() if not store.has(ref.digest)]
        registry.replace_damaged({ref.digest: FILES_GONE for ref in recovery.lost})
        for ref in recovery.lost:
            logger.error("The files of %s are gone: upload the same files again, or remove it", ref)
        if is_new:
            unfinished.unlink()
            fsync_folder(root)
        yield registry, recovery


def _set_aside_damaged(
    path: Path, store: AdapterStore, recovery: Recovery, *, made_here: bool
) -> list[tuple[Any, ...]]:
    """Move a damaged file to `lost+found`. Returns the rows that can still be read from it.

    made_here: by a start that has not come to its end; what a kill left of it holds nothing that the rest does not.
    """
    fault = registry_file.fault_of(path)
    if fault is None:
        return []
    if made_here:
        for file in registry_file.files_of(path):
            file.unlink()
        return []
    rows = registry_file.salvage(path)
    place = store.quarantine(*registry_file.files_of(path))
    recovery.report(f"The registry of adapters {fault}; what is left of it lies in {place}, and it is made anew.")
    return rows


def _bring_back(
    registry: AdapterRegistry,
    records: VersionRecords,
    store: AdapterStore,
    recovery: Recovery,
    rows: list[tuple[Any, ...]],
    default: Reference | None,
) -> None:
    """Restore versions that the registry has lost: from their records, else from rows of the damaged file."""
    listing = records.listing()
    there = {Reference(ref.name, ref.version) for ref in registry.refs()}
    found: list[AdapterRecord] = []
    damaged = list(listing.strange)
    for reference in sorted(listing.here - there):
        record = records.read(reference)
        if record is None:
            damaged.append(records.path(reference))
        else:
            found.append(record)
    known = listing.here | listing.gone
    salvaged = [record for row in rows if (record := parse_row(row)) is not None]
    named = {record.digest for record in found}
    found += [
        r
        for r in salvaged
        if Reference(r.name, r.version) not in known and store.has(r.digest) and r.digest not in named
    ]
    last: dict[str, int] = {}
    for name, version in (*listing.gone, *((record.name, record.version) for record in salvaged)):
        last[name] = max(last.get(name, 0), version or 0)
    restore(registry, found, last, default)
    if found:
        recovery.report(f"The registry had lost {_named([record.ref for record in found])}: served again.")
    if damaged:
        recovery.report(
            f"Records of versions made no sense ({len(damaged)}); they lie in {store.quarantine(*damaged)} now."
        )


def _settle(
    registry: AdapterRegistry, records: VersionRecords, store: AdapterStore, recovery: Recovery, thorough: bool
) -> None:
    """Make sure that each version has a row and a record, and that they agree.

    A record has a checksum, so it wins over a row. Unless `thorough`, only versions without a record or without files
    are compared.
    """
    listing = records.listing()
    here = listing.here
    records.forget_gone(listing.gone & here)
    unwritten, wrong = [], []
    for ref in registry.refs():
        reference = Reference(ref.name, ref.version)
        if reference in here and not thorough and store.has(ref.digest):
            continue
        row, record = registry.get(*reference), records.read(reference)
        if record is None:
            unwritten.append(row)
        elif record != row:
            wrong.append(record)
    if unwritten:
        records.write(unwritten)
    if wrong:
        replace(registry, wrong)
        recovery.report(f"The registry was wrong about {_named([record.ref for record in wrong])}: mended.")
    if records.read_default() != registry.get_default():
        records.default_set(registry.get_default())


def _place_unknown(registry: AdapterRegistry, store: AdapterStore, recovery: Recovery) -> None:
    """Delete files of uploads and deletions that had not ended, and quarantine others that no version has."""
    disposable = registry.disposable()
    for digest in disposable:
        store.remove(digest)
        registry.unmark_disposable(digest)
    for path in store.unknown_folders({ref.digest for ref in registry.refs()} | registry.restorable()):
        recovery.report(f"No version has the files in adapters/{path.name}; they lie in {store.quarantine(path)} now.")


def _named(refs: list[VersionRef]) -> str:
    shown = ", ".join(map(str, refs[:MOST_NAMED]))
    more = f" and {len(refs) - MOST_NAMED} more" if len(refs) > MOST_NAMED else ""
    return f"{len(refs)} version{'s' if len(refs) > 1 else ''} ({shown}{more})"


def _as_text(row: tuple[Any, ...]) -> str:
    """Return a row as JSON. Text of damaged rows need not be UTF-8."""
    values = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in row]
    return json.dumps(dict(zip(registry_file.COLUMNS.split(", "), values, strict=True)))
