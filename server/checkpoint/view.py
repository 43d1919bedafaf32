"""A base whose modules get their numbers when a compiler of adapters asks for them, and lose them after."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from ..engine.private.torch_private import bare_copy


class LazyBase(nn.Module):
    """Stands for the base where compilers look at single modules; it cannot be run.

    skeleton: the model without numbers. read: from a parameter's name to its numbers.
    """

    def __init__(self, skeleton: PreTrainedModel, read: Callable[[str], torch.Tensor]) -> None:
        super().__init__()
        self.config = skeleton.config
        self._skeleton = skeleton
        self._read = read
        self._last: tuple[str, nn.Module] | None = None

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module with its own parameters read. The last one is kept."""
        if self._last is None or self._last[0] != target:
            self._last = None
            module = self._skeleton.get_submodule(target)
            own = {
                name: nn.Parameter(self._read(f"{target}.{name}"), requires_grad=False)
                for name, _ in module.named_parameters(recurse=False)
            }
            self._last = target, bare_copy(module, own)
        return self._last[1]

    def get_input_embeddings(self) -> nn.Module:
        """Return the embedding without its numbers, for its type."""
        embedding: nn.Module = self._skeleton.get_input_embeddings()
        return embedding
