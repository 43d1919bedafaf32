"""The modules that keep state, wrapped: each runs a step part by part, over the slots of its sequences."""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from ..callouts import Call, call_out
from .joining import Joint, Work
from .parts import Part
from .pool import StatePool
from .tracing import Mixer, Output
from .view import StateView


class Mixers:
    """The wrapped mixers of one model. The runner sets `parts` before each step.

    joint: where the parts of a step meet.
    """

    def __init__(self, modules: Mapping[str, nn.Module], mixers: Iterable[Mixer], pool: StatePool) -> None:
        """Wrap the `forward` of every mixer, for good."""
        self.parts: Sequence[Part] = ()
        self.joint = Joint()
        self.pool = pool
        self._wrapped: dict[str, _Wrapped] = {}
        for mixer in mixers:
            module = modules[mixer.name]
            self._wrapped[mixer.name] = _Wrapped(module.forward, mixer)
            module.forward = self._around(self._wrapped[mixer.name])

    def _around(self, wrapped: "_Wrapped") -> Callable[..., Any]:
        mixer, position = wrapped.mixer, _position(wrapped.base, wrapped.mixer.argument)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if position is not None and position < len(args):
                args = (*args[:position], _VIEW, *args[position + 1 :])
            else:
                kwargs[mixer.argument] = _VIEW
            tensors: list[torch.Tensor] = []
            given = _without(args, tensors), _without(kwargs, tensors)
            # By its name: a compiled model may make the call for another layer that is alike.
            call = Call(mixer.name, partial(self._run, given), self._like)
            return _unpacked(mixer, call_out(call, *tensors))

        return forward

    def _like(self, name: str, first: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        outputs = self._wrapped[name].mixer.returned
        return first.new_empty(1, first.shape[1], *_packed_shape(outputs), dtype=outputs[0].dtype)

    def _run(self, given: tuple[Any, Any], name: str, *tensors: torch.Tensor) -> torch.Tensor:
        wrapped, num_rows = self._wrapped[name], tensors[0].shape[1]
        parts, works, views = list[Part](), list[Work](), list[StateView]()
        for whole_part in self.parts:
            view = StateView(self.pool, whole_part)
            views.append(view)
            own = whole_part.by_token() if wrapped.mixer.forgets and not whole_part.fresh else [whole_part]
            parts += own
            works += [
                partial(wrapped.run, given, [_own(part, each, num_rows) for each in tensors], view) for part in own
            ]
        if len(parts) == 1 and parts[0].rows is None:
            output = self.joint.run_alone(works[0], num_rows)
            whole = output.view(1, num_rows, *output.shape[2:])
        else:
            outputs = self.joint.run(parts, works, num_rows)
            whole = outputs[0].new_empty(1, num_rows, *outputs[0].shape[2:])
            for part, output in zip(parts, outputs, strict=True):
                whole[:, part.rows] = output.view(1, -1, *output.shape[2:])
        for view in views:
            view.write_back()
        return whole


class _Wrapped(NamedTuple):
    """A mixer with its own `forward`."""

    base: Callable[..., Any]
    mixer: Mixer

    def run(self, given: tuple[Any, Any], tensors: Sequence[torch.Tensor], view: StateView) -> torch.Tensor:
        """Run one part. given: arguments, with numbers in place of `tensors`. Returns its outputs, side by side."""
        args, kwargs = (_with(each, tensors, view) for each in given)
        return _packed(self.mixer, self.base(*args, **kwargs))


def _packed(mixer: Mixer, returned: Any) -> torch.Tensor:
    """Return what a mixer returns as one tensor (count, length, ...)."""
    values = returned if mixer.in_tuple else (returned,)
    outputs = [value for value, output in zip(values, mixer.outputs, strict=True) if output is not None]
    return outputs[0] if len(outputs) == 1 else torch.cat([output.flatten(2) for output in outputs], -1)


def _packed_shape(outputs: Sequence[Output]) -> tuple[int, ...]:
    """Return the shape of a token in what `_packed` returns."""
    return tuple(outputs[0].shape) if len(outputs) == 1 else (sum(output.shape.numel() for output in outputs),)


def _unpacked(mixer: Mixer, packed: torch.Tensor) -> Any:
    """Return what a mixer returns, of `packed` (1, rows, ...)."""
    outputs = mixer.returned
    if len(outputs) == 1:
        tensors = iter([packed])
    else:
        parts = packed.split([output.shape.numel() for output in outputs], -1)
        tensors = iter([part.unflatten(-1, output.shape) for part, output in zip(parts, outputs, strict=True)])
    returned = tuple(None if output is None else next(tensors) for output in mixer.outputs)
    return returned if mixer.in_tuple else returned[0]


def _position(base: Callable[..., Any], argument: str) -> int | None:
    """Return the place of an argument among those that may be given by position; None if it is not one of these."""
    parameters = inspect.signature(base).parameters.values()
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return names.index(argument) if argument in names else None


class _Place(int):
    """Stands for a tensor, by its number."""


_VIEW = object()  # stands for the cache


def _without(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Return arguments with numbers in place of tensors, which are appended to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return _Place(len(tensors) - 1)
    if type(value) in (tuple, list):
        return type(value)(_without(each, tensors) for each in value)
    return {key: _without(each, tensors) for key, each in value.items()} if type(value) is dict else value


def _with(value: Any, tensors: Sequence[torch.Tensor], view: StateView) -> Any:
    """Return arguments with tensors in place of their numbers, and the view in its place."""
    if isinstance(value, _Place):
        return tensors[value]
    if value is _VIEW:
        return view
    if type(value) in (tuple, list):
        return type(value)(_with(each, tensors, view) for each in value)
    return {key: _with(each, tensors, view) for key, each in value.items()} if type(value) is dict else value


def _own(part: Part, tensor: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return a part's rows of a tensor (1, tokens, ...); any other tensor as it is."""
    return part.take(tensor) if tensor.dim() > 1 and tensor.shape[:2] == (1, num_rows) else tensor
