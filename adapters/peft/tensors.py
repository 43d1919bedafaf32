"""A checkpoint's tensors by name, and which of them a compiler has taken: none may be left over."""

from collections.abc import Iterator, Mapping

import torch

from ..errors import InvalidAdapter
from .base import NamedTensor
from .config import AnyConfig
from .keys import PREFIX

_OWN = "base_model."  # the prefix of tensors that belong to no module of the base, such as shared projections


class Checkpoint:
    """The tensors of one adapter.

    Names are the module's in the base and the tensor's (`model.layers.0.self_attn.q_proj.lora_A.weight`): keys without
    PEFT's `base_model.model.`, or `base_model.` where a tensor belongs to no module (`vera_A`); the keys of prompt
    embeddings have no prefix.
    tensors: by key; may be read lazily. experts: those that the adapter routes between, each with its configuration.
    """

    def __init__(
        self, tensors: Mapping[str, torch.Tensor], experts: Mapping[str, tuple[AnyConfig, "Checkpoint"]] | None = None
    ) -> None:
        self._tensors = tensors
        self._experts = experts or {}
        self._keys = {key.removeprefix(PREFIX).removeprefix(_OWN): key for key in tensors}
        self._left = dict.fromkeys(tensors)
        if len(self._keys) < len(tensors):
            doubled = next(key for key in tensors if key not in self._keys.values())
            raise InvalidAdapter(f"{doubled} is there twice, with and without {PREFIX}", param="files")

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def take(self, name: str) -> NamedTensor:
        """Return a tensor, and count it as taken. Raises InvalidAdapter if it is missing."""
        if name not in self._keys:
            raise InvalidAdapter(
                f"the configuration wants tensors that are missing: {PREFIX}{name}"[:500], param="files"
            )
        key = self._keys[name]
        self._left.pop(key, None)
        return NamedTensor(key, self._tensors[key])

    def find(self, name: str) -> NamedTensor | None:
        """Return a tensor, and count it as taken; None if it is missing."""
        return self.take(name) if name in self._keys else None

    def expert(self, name: str) -> tuple[AnyConfig, "Checkpoint"]:
        """Return the configuration and the tensors of an expert."""
        return self._experts[name]

    @property
    def num_tensors(self) -> int:
        """Return the number of all tensors, those of the experts too, taken or not."""
        return len(self._tensors) + sum(checkpoint.num_tensors for _, checkpoint in self._experts.values())

    def take_all(self) -> Mapping[str, torch.Tensor]:
        """Return all that are not taken, by key, for a compiler that accounts for every tensor itself."""
        taken = {key: self._tensors[key] for key in self._left}
        self._left.clear()
        return taken

    def left(self) -> list[str]:
        """Return the keys that are not taken."""
        return list(self._left)
