"""Where tokens are in what a norm reads: those inside attention come behind a view and often a transpose.

An axis is found by its length in a traced pass, and not by the name of a class. It is known only where one axis alone
is as long, and where the norm gives the same for tokens in front: it then works on each token's rows by themselves.
"""

import torch
from torch import nn

_TOLERANCE = 1e-5


def token_axis(shape: torch.Size, num_tokens: int) -> int | None:
    """Return the axis that is `num_tokens` long, but not the last; None unless there is exactly one."""
    found = [axis for axis, length in enumerate(shape[:-1]) if length == num_tokens]
    return found[0] if len(found) == 1 else None


def token_rows(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """View a tensor as (tokens, ..., width), without the axis of a batch of one before the tokens."""
    if axis and tensor.shape[0] == 1:
        return tensor[0].movedim(axis - 1, 0)
    return tensor.movedim(axis, 0)


@torch.no_grad()
def works_by_token(module: nn.Module, x: torch.Tensor, axis: int) -> bool:
    """Return whether a norm gives for each token what it gives for the token in front of all other axes."""
    if x.dim() <= 3:
        return True
    whole, rows = token_rows(module.forward(x), axis).float(), module.forward(token_rows(x, axis)).float()
    return whole.shape == rows.shape and bool((whole - rows).abs().max() <= _TOLERANCE * whole.abs().max())
