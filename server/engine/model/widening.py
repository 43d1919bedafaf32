"""Lets a compiled model write the inputs of its products into wider buffers, so that columns can be filled in behind.

A piece that ends in such an input writes it with another row stride: one launch and no byte more. What is behind the
input nobody writes but who fills it in (`kernels/bypass/columns`), in the steps that use it. An input that no piece
computes, such as attention's output, stays as it is.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..private.inductor_private import detect_fake_mode
from .cutting import is_view
from .tracing import TracedModel

_library = torch.library.Library("peftserve", "FRAGMENT")
_library.define("widened(Tensor x, int columns) -> Tensor")


def _empty(x: torch.Tensor, columns: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + columns)


def _copied(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Where a piece is not compiled."""
    wide = _empty(x, columns)
    wide[..., : x.shape[-1]] = x
    return wide


_library.impl("widened", _copied, "CompositeExplicitAutograd")
torch.library.register_fake("peftserve::widened", _empty, lib=_library, allow_override=True)
WIDENED = torch.ops.peftserve.widened.default
"""(..., width) and a number of columns to (..., width + columns), of which the last hold anything."""


def widen_inputs(traced: TracedModel, room: Callable[[Any], int]) -> int:
    """Give the calls of products wider inputs, changing the graph. Returns how many have one.

    room: columns behind the input of a call, by its owner; 0 where there is none.
    """
    found = 0
    for node, call in traced.calls.items():
        columns = room(call.owner)
        if columns and _is_computed(x := node.all_input_nodes[0], traced):
            with traced.graph.inserting_after(x):
                wide = traced.graph.call_function(WIDENED, (x, columns))
            fake = detect_fake_mode(x.meta["val"])
            assert fake is not None
            with fake:
                wide.meta["val"] = WIDENED(x.meta["val"], columns)
            node.replace_input_with(x, wide)
            found += 1
    return found


def _is_computed(x: fx.Node, traced: TracedModel) -> bool:
    """By a piece, as a tensor of its own."""
    return x.op == "call_function" and x not in traced.calls and not is_view(x)
