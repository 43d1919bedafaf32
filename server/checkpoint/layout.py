"""How the tensors of a checkpoint and those of the model belong together, and the model's tensors one by one.

A unit is the least that is converted together: mostly one tensor that is another's new name; of a mixture of experts,
the tensors of all experts of a layer, which the model has as one. Nothing is read before it is asked for.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from peftserve.adapters.peft.listing import listed

from .errors import MergeRefused
from .private.transformers_private import Loaded, conversions, load, named_in_model, own_tensors, reverted, tied_names
from .skeleton import COMPUTED
from .stored import Stored

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Unit:
    """Tensors that are converted together.

    sources: names in the checkpoint; none for tensors that are only in the merged one. targets: names in the model.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]


class Layout:
    """A model without numbers and the checkpoint that has them.

    model: changed in place while tensors are converted, and given back as it was. left_over: names of tensors that the
    model does not have. Raises MergeRefused unless the checkpoint is the whole model.
    """

    def __init__(self, model: PreTrainedModel, stored: Mapping[str, Stored]) -> None:
        self.model = model
        self.own = own_tensors(model)
        self.stored = stored
        self._mapping = conversions(model)
        units = [self._unit(keys) for keys in self._grouped().values()]
        self.left_over = sorted(key for unit in units if not unit.targets for key in unit.sources)
        found = {name: unit for unit in units for name in unit.targets}
        self.aliases = dict(self._aliases(found))
        self.units = [unit for unit in units if unit.targets and unit.targets[0] not in self.aliases]
        self._unit_of = {name: unit for unit in self.units for name in unit.targets}
        self._check_whole()

    def read(self, unit: Unit) -> dict[str, torch.Tensor]:
        """Return a unit's tensors as the model has them, floating ones in float32. Raises MergeRefused, OSError."""
        self._load(unit.sources, {key: self.stored[key] for key in unit.sources}, "cpu")
        return self._taken(unit.targets)

    def tensor(self, name: str) -> torch.Tensor:
        """Return one of the model's tensors. Raises MergeRefused, OSError."""
        name = self.aliases.get(name, name)
        return self.read(self._unit_of[name])[name]

    def dtype(self, unit: Unit) -> torch.dtype:
        """Return the type in which a unit is stored; of several, the widest."""
        return max((self.stored[key].dtype for key in unit.sources), key=lambda dtype: dtype.itemsize)

    def written(self, unit: Unit, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Return a unit's tensors as a checkpoint has them, under the names that this one has where it is possible."""
        back = reverted(self.model, tensors)
        if len(back) == 1 and len(unit.sources) == 1:
            return {unit.sources[0]: next(iter(back.values()))}
        return back

    def _grouped(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for key in self.stored:
            groups.setdefault(named_in_model(key, self.model, self._mapping, self.own), []).append(key)
        return groups

    def _unit(self, keys: Sequence[str]) -> Unit:
        loaded = self._load(keys, {key: self.stored[key].empty() for key in keys}, "meta")
        targets = tuple(name for name in self.own if name in loaded.names)
        self._taken(targets)
        return Unit(tuple(keys), targets)

    def _load(self, keys: Iterable[str], tensors: Mapping[str, object], device: str) -> Loaded:
        loaded = load(self.model, tensors, self._mapping, device, COMPUTED)
        if loaded.wrong:
            raise MergeRefused(f"the checkpoint does not fit its configuration: {listed(list(loaded.wrong))}")
        return loaded

    def _taken(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Take tensors out of the model, and leave it without their numbers."""
        taken = {}
        for name in names:
            path, _, leaf = name.rpartition(".")
            module = self.model.get_submodule(path)
            taken[name] = getattr(module, leaf).detach()
            setattr(module, leaf, self.own[name])
        return taken

    def _aliases(self, found: Mapping[str, Unit]) -> Iterator[tuple[str, str]]:
        """Yield tensors that are others': what the configuration ties, unless the checkpoint has two that differ."""
        for name, other in tied_names(self.model).items():
            if name in found and other in found:
                if self._are_equal(found[name], found[other]):
                    yield name, other
            elif other in found:
                yield name, other
            elif name in found:
                yield other, name

    def _are_equal(self, one: Unit, other: Unit) -> bool:
        """Return whether two units are one tensor each, with the same bytes."""
        if len(one.sources) != 1 or len(other.sources) != 1:
            return False
        a, b = self.stored[one.sources[0]], self.stored[other.sources[0]]
        same = (a.dtype, a.shape) == (b.dtype, b.shape)
        return same and all(x == y for x, y in zip(a.pieces(), b.pieces(), strict=True))

    def _check_whole(self) -> None:
        missing = [n for n in self.own if n not in self._unit_of and n not in self.aliases and self._is_needed(n)]
        if missing:
            raise MergeRefused(
                f"the checkpoint lacks {len(missing)} of the {len(self.own)} tensors of a {type(self.model).__name__}: "
                f"{listed(missing)}"
            )

    def _is_needed(self, name: str) -> bool:
        """Return whether a model without this tensor is none: buffers have values of their own."""
        return isinstance(self.own[name], nn.Parameter)
