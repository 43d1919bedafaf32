"""Take the difference of two checkpoints, and write it as an adapter, whole or not at all."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.files import COMPANIONS, CONFIG, WEIGHTS
from peftserve.adapters.peft.compile import compile_adapter
from peftserve.adapters.peft.listing import listed
from peftserve.adapters.sites import Site, SiteKind, SiteTable

from ..errors import MergeRefused
from ..members import MAX_RANK
from ..publication import published
from ..shards import ShardWriter
from ..stored import SINGLE
from .adapter import Adapter
from .choice import Choice, Difference, choose
from .forms import Changed, Form, Limits, changed_module
from .pair import Pair

_ALIKE = (SiteKind.LINEAR, SiteKind.HEAD, SiteKind.EMBEDDING, SiteKind.NORM)
_ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
Progress = Callable[[int, int], None]
"""Told how many modules have been compared, of how many."""


@dataclass(frozen=True)
class ExtractRequest:
    """What is to be taken apart. base, tuned: folders or hub ids. out: a folder that is not there yet.

    name: of the base, as the configuration is to call it.
    """

    base: str
    tuned: str
    name: str
    out: Path
    limits: Limits = field(default_factory=Limits)
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Finding:
    """What became of one module. error: the largest difference of a number from the tuned one."""

    module: str
    form: str
    num_bytes: int
    error: float


@dataclass(frozen=True)
class Extracted:
    """The adapter that was written. method: of PEFT. same: modules that do not differ.

    unread: modules of a multimodal model that differ and that no text passes, which are left out.
    """

    method: str
    findings: Sequence[Finding]
    same: int
    num_bytes: int
    unread: Sequence[str] = ()


@dataclass(frozen=True)
class _Compared:
    changed: Sequence[Changed]
    unread: Sequence[str]


def extract(request: ExtractRequest, progress: Progress = lambda done, total: None) -> Extracted:
    """Write the adapter. Raises MergeRefused, OSError."""
    with published(request.out) as folder:
        pair = Pair(request.base, request.tuned, request.trust_remote_code)
        compared = _compared(pair, request.limits, progress)
        changed = compared.changed
        difference = _difference(changed, pair)
        choice = choose(difference)
        if choice is None:
            raise MergeRefused("no method of PEFT has these differences together; serve TUNED as a base of its own")
        adapter = Adapter(choice, changed, pair)
        _write(folder, adapter, request.name)
        _write_companions(pair, folder)
        _check(folder, pair)
        size = (folder / WEIGHTS).stat().st_size
    findings = [_finding(one, choice) for one in changed if one.site.name in choice.forms]
    return Extracted(choice.method, findings, len(pair.table.sites) - len(changed), size, compared.unread)


def _compared(pair: Pair, limits: Limits, progress: Progress) -> _Compared:
    """Compare all tensors. Raises MergeRefused if none differs, or if one does that no adapter can bring."""
    leaves: dict[str, list[str]] = {}
    for name in pair.names():
        leaves.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    changed, beyond, unread = [], [], []
    for done, (module, names) in enumerate(leaves.items()):
        progress(done, len(leaves))
        parameters = {leaf: pair.read(f"{module}.{leaf}" if module else leaf) for leaf in names}
        differing = [leaf for leaf, tensors in parameters.items() if tensors.differ]
        site = pair.table.sites.get(module)
        if differing and site is not None and site.kind in _ALIKE and parameters.keys() <= {"weight", "bias"}:
            changed.append(changed_module(site, parameters, limits))
        elif differing and module in pair.table.unread:
            unread.append(module)
        elif differing:
            beyond += [f"{module}.{leaf}" for leaf in differing]
    if beyond:
        raise MergeRefused(
            f"tensors differ that are of no linear layer, embedding or norm that an adapter can bring: "
            f"{listed(beyond)}; serve TUNED as a base of its own"
        )
    if not changed:
        raise MergeRefused("the two checkpoints are the same to texts: there is nothing for an adapter to bring")
    return _Compared(changed, unread)


def _difference(changed: Sequence[Changed], pair: Pair) -> Difference:
    table, names = pair.table, {one.site.name for one in changed}
    twins = [one for one in changed if pair.tied and one.site.name == table.head and table.tied_head in names]
    spare = min(_unchanged_linears(table, names), key=lambda site: site.in_features + site.out_features, default=None)
    others = [one for one in changed if one not in twins]
    return Difference(others, twins[0] if twins else None, table.tied_head or "", spare)


def _unchanged_linears(table: SiteTable, names: set[str]) -> Iterator[Site]:
    return (site for site in table.sites.values() if site.kind is SiteKind.LINEAR and site.name not in names)


def _write(folder: Path, adapter: Adapter, base: str) -> None:
    tensors = list(adapter.tensors())
    entries = [one.entry for one in tensors]
    with ShardWriter(folder, entries, max_bytes=sum(entry.num_bytes for entry in entries)) as writer:
        for one in tensors:
            writer.write(one.entry.name, one.make())
    (folder / SINGLE).rename(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(adapter.config(base), indent=2) + "\n", encoding="utf-8")


def _write_companions(pair: Pair, folder: Path) -> None:
    """Copy what the tuned checkpoint says of its words and its talk where the base says something else."""
    base, tuned = pair.folders
    grown = pair.has_grown
    for name in COMPANIONS:
        source = tuned / name
        is_words = name not in ("chat_template.jinja", "generation_config.json")
        if source.is_file() and (grown or not is_words) and not _are_same(source, base / name):
            shutil.copyfile(source, folder / name)
    ends = {name: getattr(pair.configs[1].get_text_config(), name, None) for name in _ENDS}
    own = {name: getattr(pair.configs[0].get_text_config(), name, None) for name in _ENDS}
    if ends != own and not (tuned / "generation_config.json").is_file():
        (folder / "generation_config.json").write_text(json.dumps(ends, indent=2) + "\n", encoding="utf-8")


def _are_same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _check(folder: Path, pair: Pair) -> None:
    """Compile the adapter as a server does. Raises MergeRefused where it would not be served."""
    try:
        compile_adapter(
            folder,
            pair.table,
            torch.float32,
            max_rank=MAX_RANK,
            model=pair.base.compiled_against,
            max_dense_delta=1 << 62,
        )
    except AdapterError as error:
        raise MergeRefused(f"the difference would not be served: {error.message}") from None


def _finding(one: Changed, choice: Choice) -> Finding:
    form = choice.forms[one.site.name]
    if form is Form.LOW_RANK and one.low_rank is not None:
        return Finding(one.site.name, f"{form}, {len(one.low_rank.a)}", one.low_rank.num_bytes, one.low_rank.error)
    if form is Form.SPARSE and one.sparse is not None:
        return Finding(one.site.name, f"{form}, {len(one.sparse.values)}", one.sparse.num_bytes, one.sparse.error)
    if form is Form.ROWS and one.rows is not None:
        return Finding(one.site.name, f"{form}, {len(one.rows.ids)}", one.rows.num_bytes, 0.0)
    return Finding(one.site.name, str(form), one.whole_bytes, 0.0)
