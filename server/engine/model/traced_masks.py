"""What the queries of each layer see, read off the masks that transformers makes in a traced pass.

A layer's window is not always among what its attention function is called with: for some models (Llama 4, PhiMoE) it is
in the mask alone, and in others the function is told a window that no mask has. transformers' own attention goes by the
mask.
"""

from typing import Any

import torch
from transformers import AttentionMaskInterface

from peftserve.kernels.attention.layout import Reach

from .errors import UnservableModel


class TracedMasks:
    """Makes masks as for transformers' own attention, and keeps them with the reach that each stands for."""

    def __init__(self, name: str) -> None:
        """name: of the attention function in traced passes. Under another name no masks are made."""
        self.name = name
        self._made: list[tuple[torch.Tensor, Reach]] = []
        AttentionMaskInterface.register(name, self)

    def __call__(self, **asked: Any) -> torch.Tensor | None:
        """Make a mask, called as transformers' interface for masks calls it."""
        mask: torch.Tensor | None = AttentionMaskInterface()["eager"](**asked)
        if mask is not None:
            self._made.append((mask, _reach(asked)))
        return mask

    def reach(self, mask: torch.Tensor | None) -> Reach | None:
        """Return what a mask stands for; None of one that was not made here."""
        return next((reach for made, reach in self._made if made is mask), None)

    def clear(self) -> None:
        self._made.clear()


def _reach(asked: dict[str, Any]) -> Reach:
    """Ask the formula of a mask for its first position that a window does not reach from position 0 on.

    A window that slides there still sees the one before, one that restarts does not. Raises UnservableModel if the
    formula is one of tokens, not of positions.
    """
    size: int | None = asked.get("local_size")
    if size is None:
        return Reach()
    zero, query = torch.tensor(0), torch.tensor(size)
    try:
        restarts = not bool(asked["mask_function"](zero, zero, query, query - 1))
    except IndexError as error:
        raise UnservableModel("what its queries see depends on more than their positions") from error
    return Reach(size, restarts)
