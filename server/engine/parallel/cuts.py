"""Which features of a module's input and output each rank has. Knows no model and no adapters."""

from dataclasses import dataclass
from itertools import accumulate
from typing import NoReturn

import torch

from ..model.errors import UnservableModel

Features = tuple[torch.Tensor, ...]
"""For each rank, the features that it has: (count,) int64, as many on every rank."""


@dataclass(frozen=True)
class Cut:
    """How one product is divided: by its outputs (columns), or by its inputs (rows); both None: it is not.

    Divided by inputs, each rank has a part of a sum, and the ranks add up what they have.
    """

    inputs: Features | None = None
    outputs: Features | None = None


WHOLE = Cut()


def even(width: int, ranks: int, what: str) -> Features:
    """Divide `width` features among the ranks, each a run of them. what: named in the error.

    Raises UnservableModel where they cannot be divided evenly.
    """
    return _by_parts([width], ranks, what)


def packed(widths: list[int], ranks: int, what: str) -> Features:
    """Divide features that are several parts side by side: each rank has its run of each part."""
    return _by_parts(widths, ranks, what)


def by_heads(heads: int, width: int, ranks: int, what: str) -> Features:
    """Divide `heads` heads of `width` features each. Where there are fewer than ranks, neighbours have the same one."""
    if heads % ranks == 0:
        return even(heads * width, ranks, what)
    if ranks % heads:
        _refuse(f"the {heads} heads of {what}", ranks)
    return tuple(torch.arange(width) + rank * heads // ranks * width for rank in range(ranks))


def beside(parts: list[Features], widths: list[int]) -> Features:
    """Return the features of several parts that lie side by side, of these widths."""
    starts = [0, *accumulate(widths)]
    return tuple(
        torch.cat([part + start for part, start in zip(ranked, starts, strict=False)])
        for ranked in zip(*parts, strict=True)
    )


def _by_parts(widths: list[int], ranks: int, what: str) -> Features:
    for width in widths:
        if width % ranks:
            _refuse(f"the {width} features of {what}", ranks)
    runs = [torch.arange(width).split(width // ranks) for width in widths]
    return beside(runs, widths)


def _refuse(what: str, ranks: int) -> NoReturn:
    raise UnservableModel(f"{what} cannot be divided among {ranks} ranks; choose another --tensor-parallel-size")
