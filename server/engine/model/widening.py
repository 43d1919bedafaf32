"""Let a compiled model write the inputs of its products into wider buffers, so that columns can be filled in behind.

A piece that ends in such an input writes it with another row stride: no launch and no byte more. The columns behind it
are written in the steps that use them, by `kernels/bypass/columns`. An input that no piece computes, such as
attention's output, stays as it is.
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
    """Copy an input into a wider buffer, where its piece is not compiled."""
    wide = _empty(x, columns)
    wide[..., : x.shape[-1]] = x
    return wide


_library.impl("widened", _copied, "CompositeExplicitAutograd")
torch.library.register_fake("peftserve::widened", _empty, lib=_library, allow_override=True)
WIDENED = torch.ops.peftserve.widened.default
"""From (..., width) and a number of columns to (..., width + columns), of which the last columns are not set."""


def widen_inputs(traced: TracedModel, room: Callable[[Any], int]) -> int:
    """Give calls wider inputs, where a piece computes them. Changes the graph. Returns how many calls have one.

    room: from a call's owner to the number of columns behind its input.
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
    """Return whether a piece computes x, as a tensor of its own."""
    return x.op == "call_function" and x not in traced.calls and not is_view(x)
