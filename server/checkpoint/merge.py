"""Merge adapters into a base: from a request to a folder that transformers loads.

In memory at any time: the compiled adapters, one unit of the checkpoint, and what is made of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from peftserve.adapters.primitives import ExpertLowRank, Replacement
from peftserve.adapters.sites import Site, SiteKind

from ..engine.model.checkpoint import read_config
from ..engine.model.errors import UnservableModel
from ..engine.model.loading import check_structure
from .bases import DequantisedBase, MergeBase, PlainBase
from .card import model_card
from .errors import MergeRefused
from .folder import write_beside
from .folding import Affine, Share, fold, fold_experts, fold_norm, oriented
from .layout import Layout
from .members import Chosen, Member, compile_members, shares_by_site
from .plan import Plan, Shares, Work, make_plan
from .publication import published
from .shards import ShardWriter
from .skeleton import skeleton
from .stored import checkpoint_folder, stored_tensors


@dataclass(frozen=True)
class MergeRequest:
    """What is to be merged, and where to.

    model: a folder or a hub's id; name: how the model card calls it. out: a folder that is not there yet.
    dtype: of the result; None keeps that of each tensor. dequantize: take a quantised base apart.
    """

    model: str
    name: str
    chosen: Sequence[Chosen]
    out: Path
    dtype: torch.dtype | None = None
    dequantize: bool = False
    max_shard_bytes: int = 5_000_000_000
    max_dense_delta: int = 1 << 30
    trust_remote_code: bool = False


Progress = Callable[[int, int], None]
"""Told how many bytes are written now, of how many in all."""


def merge(request: MergeRequest, progress: Progress = lambda done, total: None) -> list[Member]:
    """Write the merged checkpoint, whole or not at all. Returns what went into it.

    Raises MergeRefused, AdapterError, OSError.
    """
    with published(request.out) as folder:
        source = checkpoint_folder(request.model)
        try:
            base = _base(request, source)
        except UnservableModel as error:
            raise MergeRefused(f"this model cannot be merged into: {error}") from None
        members = compile_members(request.chosen, base, request.max_dense_delta)
        shares = shares_by_site(members)
        plan = make_plan(base, shares, request.dtype, request.trust_remote_code)
        write_beside(source, folder, base, plan.fields, request.dtype)
        (folder / "README.md").write_text(model_card(request.name, source, members), encoding="utf-8")
        entries = [entry for work in plan.works for unit in work.entries for entry in unit]
        with ShardWriter(folder, entries, request.max_shard_bytes) as writer:
            _Folder(base, shares, plan, writer, progress).write()
        _check_loads(folder, request.trust_remote_code)
    return members


def _base(request: MergeRequest, folder: Path) -> MergeBase:
    config = read_config(str(folder), request.trust_remote_code)
    check_structure(config)
    if getattr(config, "quantization_config", None) is None:
        return PlainBase(folder, config, request.trust_remote_code)
    if not request.dequantize:
        raise MergeRefused(
            f"{request.name} is quantised, and adapters do not go into quantised weights; --dequantize writes its "
            "numbers as they are multiplied, in --dtype"
        )
    return DequantisedBase(str(folder), request.dtype or _own_dtype(config), request.trust_remote_code)


def dtype_named(name: str) -> torch.dtype | None:
    """Return the type that `--dtype` names; None for `auto`."""
    found: torch.dtype | None = None if name == "auto" else getattr(torch, name)
    return found


def _own_dtype(config: PreTrainedConfig) -> torch.dtype:
    dtype = config.get_text_config().dtype or config.dtype or torch.bfloat16
    found: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return found


def _check_loads(folder: Path, trust_remote_code: bool) -> None:
    """Read the result's names and shapes as transformers would. A mistake here is ours."""
    layout = Layout(skeleton(read_config(str(folder), trust_remote_code), trust_remote_code), stored_tensors(folder))
    assert not layout.left_over, f"tensors that no model has were written: {layout.left_over[:5]}"


class _Folder:
    """Folds and writes all work of a plan."""

    def __init__(self, base: MergeBase, shares: Shares, plan: Plan, writer: ShardWriter, progress: Progress) -> None:
        self._base = base
        self._known = frozenset(base.units)
        self._shares = shares
        self._plan = plan
        self._writer = writer
        self._progress = progress
        self._done = 0

    def write(self) -> None:
        for work in self._plan.works:
            if work.sites or not self._copy(work):
                self._make(work)
            self._done += sum(entry.num_bytes for unit in work.entries for entry in unit)
            self._progress(self._done, self._writer.num_bytes)

    def _copy(self, work: Work) -> bool:
        """Copy what nothing changes, byte by byte unless its type does. Returns whether there was anything to copy."""
        for unit, entries in zip(work.units, work.entries, strict=True):
            source = self._base.source(unit)
            for entry in entries if source else ():
                stored = source[entry.name]
                if stored.dtype == entry.dtype:
                    self._writer.write_pieces(entry.name, stored.pieces())
                else:
                    self._writer.write(entry.name, stored.read())
            if not source:
                return False
        return True

    def _make(self, work: Work) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for unit in work.units:
            tensors |= self._base.read(unit) if unit in self._known else self._new(unit.targets)
        for site in work.sites:
            self._fold(self._base.table.sites[site], self._shares[site], tensors)
        for unit, entries in zip(work.units, work.entries, strict=True):
            made = self._base.written(unit, {name: tensors.pop(name) for name in unit.targets})
            for entry in entries:
                self._writer.write(entry.name, made.pop(entry.name))

    def _new(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return tensors that the base has not: what was another's, and biases."""
        sites = self._base.table.sites
        return {
            name: torch.zeros(sites[name.removesuffix(".bias")].out_features)
            if name in self._plan.zeros
            else self._base.tensor(self._plan.copies[name])
            for name in names
        }

    def _fold(self, site: Site, shares: Sequence[Share], tensors: dict[str, torch.Tensor]) -> None:
        _FOLDS.get(site.kind, _fold_matrix)(site, shares, tensors)


Tensors = dict[str, torch.Tensor]


def _fold_matrix(site: Site, shares: Sequence[Share], tensors: Tensors) -> None:
    weight, bias = f"{site.name}.weight", f"{site.name}.bias"
    folded = fold(site, Affine(oriented(site, tensors[weight]), tensors.get(bias)), shares)
    tensors[weight] = oriented(site, folded.weight)
    if folded.bias is not None:
        tensors[bias] = folded.bias


def _fold_norm(site: Site, shares: Sequence[Share], tensors: Tensors) -> None:
    brought = [(s.weight, p) for s in shares for p in s.primitives if isinstance(p, Replacement)]
    for leaf in ("weight", "bias"):
        if (name := f"{site.name}.{leaf}") in tensors:
            tensors[name] = fold_norm(tensors[name], [(weight, getattr(p, leaf)) for weight, p in brought])


def _fold_experts(site: Site, shares: Sequence[Share], tensors: Tensors) -> None:
    for share in shares:
        for primitive in share.primitives:
            assert isinstance(primitive, ExpertLowRank)
            fold_experts(tensors[f"{site.name}.{primitive.parameter}"], site.transposed, primitive, share.weight)


_FOLDS: dict[SiteKind, Callable[[Site, Sequence[Share], Tensors], None]] = {
    SiteKind.NORM: _fold_norm,
    SiteKind.EXPERTS: _fold_experts,
}
