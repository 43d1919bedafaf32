"""A base and a checkpoint that was tuned from it: that they are of one kind, and their tensors side by side.

At any time the tensors of one unit of each are in memory.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from peftserve.adapters.peft.listing import listed
from peftserve.adapters.sites import SiteKind, SiteTable

from ...engine.model.checkpoint import read_config
from ...engine.model.errors import UnservableModel
from ...engine.model.loading import check_structure
from ..bases import PlainBase
from ..errors import MergeRefused
from ..layout import Layout
from ..skeleton import skeleton
from ..stored import checkpoint_folder, stored_tensors

# Fields that change nothing of what a model computes from token ids, or that its tensors say as well.
_FREE = frozenset(
    {"_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "vocab_size", "use_cache"}
    | {"bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "initializer_range", "pretraining_tp"}
    | {"id2label", "label2id", "problem_type", "auto_map", "output_router_logits", "router_aux_loss_coef"}
)
_DROPPED = ("dropout", "pdrop")


class Tensors(NamedTuple):
    """One tensor of the tuned checkpoint beside the base's. dtype: in which the tuned one is stored."""

    before: torch.Tensor
    after: torch.Tensor
    dtype: torch.dtype

    @property
    def differ(self) -> bool:
        return not torch.equal(self.before, self.after)


class Pair:
    """Two checkpoints, with the sites of the base.

    tied: whether embedding and head are one tensor in both. folders: of both.
    """

    def __init__(self, base: str, tuned: str, trust_remote_code: bool = False) -> None:
        """Raises MergeRefused unless both are whole and of one kind, OSError."""
        self.folders = checkpoint_folder(base), checkpoint_folder(tuned)
        self.configs = tuple(_config(folder, trust_remote_code) for folder in self.folders)
        _require_same(*self.configs)
        self.base = PlainBase(self.folders[0], self.configs[0], trust_remote_code)
        self._tuned = Layout(skeleton(self.configs[1], trust_remote_code), stored_tensors(self.folders[1]))
        if left := self._tuned.left_over:
            raise MergeRefused(f"the tuned checkpoint has tensors that its architecture does not know: {listed(left)}")
        self._check_tensors()
        self._units = {name: unit for unit in self._tuned.units for name in unit.targets}
        self._last: tuple[object, Mapping[str, torch.Tensor]] | None = None

    @property
    def table(self) -> SiteTable:
        return self.base.table

    @property
    def tied(self) -> bool:
        """Return whether the head is the embedding's tensor in both checkpoints."""
        head = f"{self.table.head}.weight"
        names = {head, f"{self.table.tied_head}.weight"}
        return self.table.tied_head is not None and bool(names & self._tuned.aliases.keys())

    @property
    def has_grown(self) -> bool:
        """Return whether the tuned checkpoint knows more tokens."""
        return any(tensor.shape != self._tuned.own[name].shape for name, tensor in self.base.own.items())

    def names(self) -> Iterator[str]:
        """Iterate over the model's tensors; a tied one is both of its names."""
        yield from self.base.own

    def read(self, name: str) -> Tensors:
        """Return a tensor of both, floating ones in float32. Raises MergeRefused, OSError."""
        own = self._tuned.aliases.get(name, name)
        unit = self._units[own]
        if self._last is None or self._last[0] is not unit:
            self._last = None
            self._last = unit, self._tuned.read(unit)
        return Tensors(self.base.tensor(name), self._last[1][own], self._tuned.dtype(unit))

    def _check_tensors(self) -> None:
        """Raise MergeRefused for tensors that only one has, and for shapes that no adapter changes."""
        own, other = self.base.own, self._tuned.own
        if odd := sorted(own.keys() ^ other.keys()):
            raise MergeRefused(f"only one of the two checkpoints has {listed(odd)}")
        wrong = [
            f"{name} {tuple(other[name].shape)}, where the base's is {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if tensor.shape != other[name].shape and not self._has_grown(name, other[name].shape)
        ]
        if wrong:
            raise MergeRefused(f"tensors have other shapes than the base's: {listed(wrong)}")

    def _has_grown(self, name: str, shape: torch.Size) -> bool:
        """Return whether this is an embedding or a head with rows for more tokens."""
        site, own = self.table.sites.get(name.rpartition(".")[0]), self.base.own[name].shape
        is_table = site is not None and site.kind in (SiteKind.EMBEDDING, SiteKind.HEAD)
        return is_table and shape[1:] == own[1:] and shape[0] > own[0]


def _config(folder: Path, trust_remote_code: bool) -> PreTrainedConfig:
    try:
        config = read_config(str(folder), trust_remote_code)
        check_structure(config)
    except UnservableModel as error:
        raise MergeRefused(str(error)) from None
    if getattr(config, "quantization_config", None) is not None:
        raise MergeRefused(f"{folder.name} is quantised: the difference is taken of plain checkpoints")
    return config


def _require_same(base: PreTrainedConfig, tuned: PreTrainedConfig) -> None:
    """Raise MergeRefused where the configurations say that other things are computed."""
    if type(base) is not type(tuned):
        raise MergeRefused(
            f"BASE is a {base.model_type} and TUNED a {tuned.model_type}: no adapter makes one the other"
        )
    if other := sorted(_differences(base.to_dict(), tuned.to_dict(), type(base)().to_dict())):
        raise MergeRefused(
            f"the configurations differ in {listed(other)}, and what is computed is what BASE's says; serve TUNED as a "
            "base of its own"
        )


def _differences(base: Mapping[str, Any], tuned: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    for name in known:
        one, other = base.get(name), tuned.get(name)
        if isinstance(one, dict) and isinstance(other, dict) and name.endswith("_config"):
            yield from (f"{name}.{inner}" for inner in _differences(one, other, one))
        elif one != other and name not in _FREE and not name.endswith(_DROPPED):
            yield f"{name} ({repr(one)[:60]}, {repr(other)[:60]})"
