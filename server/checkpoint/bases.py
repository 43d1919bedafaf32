"""Bases to merge into: where adapters attach, the model that compilers read, and the numbers of each tensor.

`PlainBase` reads them from the checkpoint one at a time. `DequantisedBase` holds the quantised model, which no file
gives back number by number, and multiplies out one module after the other.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftserve.adapters.peft.plain import is_plain, read_weight
from peftserve.adapters.sites import SiteTable

from ..config import EngineConfig
from ..engine.model.loading import load_model
from .errors import MergeRefused
from .layout import Layout, Unit
from .private.transformers_private import own_tensors, tied_names
from .skeleton import COMPUTED, changed, skeleton
from .stored import Stored, stored_tensors
from .tracing import trace_sites
from .view import LazyBase


class MergeBase(Protocol):
    """A base to merge into.

    config: of the merged model, before adapters change it. architecture: name of its class. table: the sites.
    compiled_against: the model, for compilers.
    own: the model's tensors by name, without numbers. aliases: those that are others' too, by name.
    units: what is converted together.
    """

    config: PreTrainedConfig
    architecture: str
    is_dequantised: bool
    table: SiteTable
    own: Mapping[str, torch.Tensor]
    aliases: Mapping[str, str]
    units: Sequence[Unit]

    @property
    def compiled_against(self) -> nn.Module: ...

    def read(self, unit: Unit) -> dict[str, torch.Tensor]:
        """Return the tensors of a unit, floating ones in float32."""

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor, a floating one in float32."""

    def dtype(self, unit: Unit) -> torch.dtype:
        """Return the type in which a unit is written unless another is asked for."""

    def written(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the tensors of a unit as a checkpoint has them."""

    def source(self, unit: Unit) -> Mapping[str, Stored]:
        """Return what a unit that nothing changes is in the checkpoint, to be copied; empty if it must be made."""


class PlainBase:
    """A base whose checkpoint holds its numbers."""

    is_dequantised: bool = False

    def __init__(self, folder: Path, config: PreTrainedConfig, trust_remote_code: bool = False) -> None:
        """Raises MergeRefused, OSError."""
        self.config = config
        self._layout = Layout(skeleton(config, trust_remote_code), stored_tensors(folder))
        self.architecture = type(self._layout.model).__name__
        tied = bool(self._layout.aliases) or not tied_names(self._layout.model)
        self.table = trace_sites(config if tied else changed(config, {"tie_word_embeddings": False}), trust_remote_code)
        self.own: Mapping[str, torch.Tensor] = self._layout.own
        self.aliases: Mapping[str, str] = self._layout.aliases
        self.units: Sequence[Unit] = self._layout.units
        self._view = LazyBase(self._layout.model, self._layout.tensor)

    @property
    def compiled_against(self) -> nn.Module:
        return self._view

    def read(self, unit: Unit) -> dict[str, torch.Tensor]:
        return self._layout.read(unit)

    def tensor(self, name: str) -> torch.Tensor:
        return self._layout.tensor(name)

    def dtype(self, unit: Unit) -> torch.dtype:
        return self._layout.dtype(unit)

    def written(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self._layout.written(unit, tensors)

    def source(self, unit: Unit) -> Mapping[str, Stored]:
        return {key: self._layout.stored[key] for key in unit.sources}


class DequantisedBase:
    """A quantised base, loaded as the server loads it, whose numbers are those that its modules multiply by."""

    is_dequantised: bool = True

    def __init__(self, model: str, dtype: torch.dtype, trust_remote_code: bool = False) -> None:
        """Raises MergeRefused, UnservableModel. dtype: to be written."""
        loaded = load_model(EngineConfig(model=model, device="cpu", trust_remote_code=trust_remote_code))
        self._model: PreTrainedModel = loaded.twin
        self.table = loaded.sites.table
        self.config = _unquantised(loaded.model.config)
        self.architecture = type(loaded.model).__name__
        bare = skeleton(self.config, trust_remote_code)
        self.own: Mapping[str, torch.Tensor] = own_tensors(bare)
        tied = tied_names(bare) if self.table.tied_head is not None else {}
        self.aliases: Mapping[str, str] = {name: other for name, other in tied.items() if name in self.own}
        self.units: Sequence[Unit] = [Unit((), (name,)) for name in self.own if name not in self.aliases]
        self._dtype = dtype
        self._compute_dtype = loaded.dtype

    @property
    def compiled_against(self) -> nn.Module:
        return self._model

    def read(self, unit: Unit) -> dict[str, torch.Tensor]:
        return {name: self.tensor(name) for name in unit.targets}

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor. Raises MergeRefused if its numbers cannot be read."""
        path, _, leaf = self.aliases.get(name, name).rpartition(".")
        module = self._model.get_submodule(path)
        found = getattr(module, leaf, None)
        if isinstance(found, torch.Tensor) and (is_plain(found) or not _is_floating(self.own[name])):
            return found.detach().to(COMPUTED, copy=True) if found.is_floating_point() else found.detach()
        site = self.table.sites.get(path)
        weight = read_weight(module, site, self._compute_dtype) if site is not None and leaf == "weight" else None
        if weight is None:
            raise MergeRefused(f"{name} is quantised in a way that cannot be read; merge into the unquantised base")
        return weight.values.to(COMPUTED, copy=True)

    def dtype(self, unit: Unit) -> torch.dtype:
        kind = self.own[unit.targets[0]].dtype
        return self._dtype if kind.is_floating_point else kind

    def written(self, unit: Unit, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return them under the model's own names, which transformers reads, too."""
        return dict(tensors)

    def source(self, unit: Unit) -> Mapping[str, Stored]:
        return {}


def _is_floating(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point()


def _unquantised(config: PreTrainedConfig) -> PreTrainedConfig:
    plain = changed(config, {})
    for part in (plain, plain.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return plain
