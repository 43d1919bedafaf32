"""A checkpoint's tensors by name, and which of them a compiler has taken: none may be left over."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..errors import InvalidAdapter
from ..safetensors_header import CAST, TensorInfo
from .base import NamedTensor, is_finite
from .config import AnyConfig
from .keys import PREFIX
from .listing import listed

# A value head of TRL, positions of transformers before 4.32, and the alphas of other trainers.
_IDLE = re.compile(r"(^|\.)v_head\.|(^|\.)rotary_emb\.inv_freq$|\.alpha$")
_OWN = "base_model."  # the prefix of tensors that belong to no module of the base, such as shared projections


class LazyTensors(Mapping[str, torch.Tensor]):
    """The tensors of an open file, each read when it is asked for. stored: from its name to its key in the file."""

    def __init__(self, header: Mapping[str, TensorInfo], file: Any, stored: Mapping[str, str]) -> None:
        self._header = {name: header[key] for name, key in stored.items()}
        self._file = file
        self._stored = stored

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the file's header."""
        return self._header[name].shape

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self._stored[name])
        return _as_float32(name, tensor) if self._header[name].dtype in CAST else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._header)

    def __len__(self) -> int:
        return len(self._header)


class Checkpoint:
    """The tensors of one adapter.

    Names are the module's in the base and the tensor's (`model.layers.0.self_attn.q_proj.lora_A.weight`): keys without
    the method's prefix, or `base_model.` where a tensor belongs to no module (`vera_A`); the keys of prompt embeddings
    have no prefix.
    tensors: by key; may be read lazily. experts: those that the adapter routes between, each with its configuration.
    prefix: before the names of the base's modules.
    """

    def __init__(
        self,
        tensors: Mapping[str, torch.Tensor],
        experts: Mapping[str, tuple[AnyConfig, "Checkpoint"]] | None = None,
        prefix: str = PREFIX,
    ) -> None:
        self._tensors = tensors
        self._experts = experts or {}
        self._prefix = prefix
        self._keys = {key.removeprefix(prefix).removeprefix(_OWN): key for key in tensors}
        self._left = dict.fromkeys(tensors)
        if len(self._keys) < len(tensors):
            doubled = next(key for key in tensors if key not in self._keys.values())
            raise InvalidAdapter(f"{doubled} is there twice, with and without {prefix}", param="files")

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def take(self, name: str) -> NamedTensor:
        """Return a tensor, and count it as taken. Raises InvalidAdapter if it is missing."""
        if name not in self._keys:
            raise InvalidAdapter(
                f"the configuration wants tensors that are missing: {self._prefix}{name}"[:500], param="files"
            )
        key = self._keys[name]
        self._left.pop(key, None)
        return NamedTensor(key, self._tensors[key])

    def below(self, module: str) -> list[str]:
        """Return the names of all tensors of a module and of those in it, taken or not."""
        return [name for name in self._keys if name.startswith(f"{module}.")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor that is there, without reading it from its file."""
        tensors, key = self._tensors, self._keys[name]
        return tensors.shape(key) if isinstance(tensors, LazyTensors) else tuple(tensors[key].shape)

    def find(self, name: str) -> NamedTensor | None:
        """Return a tensor, and count it as taken; None if it is missing."""
        return self.take(name) if name in self._keys else None

    def expert(self, name: str) -> tuple[AnyConfig, "Checkpoint"]:
        """Return the configuration and the tensors of an expert."""
        return self._experts[name]

    @property
    def num_tensors(self) -> int:
        """Return the number of all tensors but idle ones, those of the experts too, taken or not."""
        return (
            len(self._tensors)
            - len(self._idle())
            + sum(checkpoint.num_tensors for _, checkpoint in self._experts.values())
        )

    def take_all(self) -> Mapping[str, torch.Tensor]:
        """Return all that are not taken, by key, for a compiler that accounts for every tensor itself."""
        taken = {key: self._tensors[key] for key in self.left()}
        self._left = dict.fromkeys(self._idle())
        return taken

    def left(self) -> list[str]:
        """Return the keys that are not taken, but for idle ones."""
        return [key for key in self._left if not is_idle(key)]

    def notes(self) -> list[str]:
        """Say which tensors have no effect, once all others are taken."""
        idle, what = self._idle(), "the weights hold tensors that PEFT ignores, and that are ignored here"
        own = [f"{what}: {listed(idle)}"] if idle else []
        return [*own, *(note for _, expert in self._experts.values() for note in expert.notes())]

    def _idle(self) -> list[str]:
        return [key for key in self._left if is_idle(key)]


def is_idle(key: str) -> bool:
    """Return whether a tensor is one that trainers leave in an adapter's file and that PEFT has no use for."""
    return _IDLE.search(key) is not None


def _as_float32(key: str, tensor: torch.Tensor) -> torch.Tensor:
    """Cast a tensor. Raises InvalidAdapter for NaN and infinity, and for numbers that float32 does not hold."""
    result = tensor.float()
    if not is_finite(result):
        finite = tensor.dtype is torch.float64 and is_finite(tensor)
        why = "is too large for float32, in which PEFT holds it" if finite else "holds NaN or infinity"
        raise InvalidAdapter(f"{key} {why}", param="files")
    return result
