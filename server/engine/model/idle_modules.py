"""Modules that no text passes although they are loaded, as the cross-attention of a decoder without an encoder.

An adapter there changes no answer. Of modules whose names differ in numbers only, all or none are idle: an expert that
no token of a short prompt was sent to is not.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .sites import TracedSites

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


class IdleTracer(TorchFunctionMode):
    """Notes, as a context around passes over text, which modules are called and which parameters are used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._called = set[nn.Module]()
        self._used = set[int]()  # ids of parameters
        self._hooks = ExitStack()

    def __enter__(self) -> "IdleTracer":
        for module in self._model.modules():
            self._hooks.callback(module.register_forward_pre_hook(self._note).remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._hooks.close()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self._used.update(map(id, _tensors([*args, *(kwargs or {}).values()])))
        return func(*args, **(kwargs or {}))

    def _note(self, module: nn.Module, _: Any) -> None:
        self._called.add(module)

    def idle(self) -> frozenset[str]:
        """Return the names of the modules that nothing passes, with all that is below them."""
        active, idle = set[str](), dict[str, str]()
        for name, module in self._model.named_modules():
            parameters = list(module.parameters())
            if any(map(self._is_active, module.modules())) or self._used.intersection(map(id, parameters)):
                active.add(_NUMBER.sub("*", name))
            elif parameters:
                idle[name] = _NUMBER.sub("*", name)
        return frozenset(name for name, kind in idle.items() if kind not in active)

    def read(self) -> frozenset[str]:
        """Return the names of the linears that are never called, while the model reads their weights itself."""
        called, read = set[str](), dict[str, str]()
        for name, module in self._model.named_modules():
            if module in self._called:
                called.add(_NUMBER.sub("*", name))
            elif isinstance(module, nn.Linear) and id(module.weight) in self._used:
                read[name] = _NUMBER.sub("*", name)
        return frozenset(name for name, kind in read.items() if kind not in called)

    def _is_active(self, module: nn.Module) -> bool:
        return module in self._called


def without_idle(traced: TracedSites, idle: frozenset[str], read: frozenset[str]) -> TracedSites:
    """Return the sites with idle modules among those that adapters may be on to no effect.

    read: linears that are never called, but read.
    """
    table = traced.table
    beside = table.other_modules & idle
    table = replace(
        table,
        other_modules=table.other_modules - beside,
        irregular=table.irregular - beside,
        matrices=table.matrices - beside,
        unread=table.unread | beside,
        read=table.matrices & read,
    )
    return replace(traced, table=table)


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, nn.Parameter):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
