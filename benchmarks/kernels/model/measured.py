"""The measurements on lent GPUs in the model's terms. Each of `measurements/*.json` says what it is of."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftserve.kernels.bypass.triton.designs import Design, Expand, Shrink
from peftserve.kernels.bypass.triton.model import Device, Share

from ..axes import MIXED

FOLDER = Path(__file__).with_name("measurements")
EXPERIMENT, PEERS = "h200_two_launches.json", "h100_peers.json"
OWN_ROWS = (1, 16, 32, 64, 128)
"""Of a tile. The experiment tried 4 as sums of products too: on sm_90 those spill registers, and no design has them."""
SPILLS = Expand(32, 256, 1, warps=4, stages=2)
"""As its first expand, 48 bytes a thread on sm_90, which takes the model by surprise: 1.4 times as long."""

_ANY_SHRINK = Shrink(16, 1024, 128, warps=2, stages=4)
_ANY_EXPAND = Expand(16, 128, 4, warps=4, stages=3)


@dataclass(frozen=True)
class Half:
    """A measurement of one of the two launches over a layer's groups. us: microseconds of a layer.

    half: shrink, expand or expand_by_ranks, which is the experiment's first expand for tiles of 16 and more rows: its
    loop over ranks brings partial sums through shared memory.
    """

    half: str
    tokens: int
    adapters: int
    ranks: str
    design: Design
    us: float


def read(name: str = EXPERIMENT) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return table


def device_of(table: dict[str, Any]) -> Device:
    """Return the measured device. H100 and H200 have the same multiprocessors."""
    return Device(132, table["bandwidth"])


def shares(tokens: int, adapters: int, ranks: str) -> list[Share]:
    """Return the adapters' shares of a step. ranks: of all, or 8-64 for 8, 16, 32, 64 in turn."""
    each = tokens // adapters
    if "-" in ranks:
        return [Share(rank, each, adapters // len(MIXED)) for rank in MIXED]
    return [Share(int(ranks), each, adapters)]


def halves(table: dict[str, Any]) -> list[Half]:
    """Return the measurements of designs that a product could have."""
    found = [*_shrinks(table["shrink"]), *_expands("expand", table["expand"])]
    by_ranks = _expands("expand_by_ranks", table["expand_by_ranks"])
    return [*found, *(point for point in by_ranks if point.design.expand != SPILLS)]


def _shrinks(points: Sequence[Sequence[Any]]) -> Iterator[Half]:
    for tokens, adapters, ranks, rows, *half, us in points:
        if rows in OWN_ROWS:
            yield Half("shrink", tokens, adapters, ranks, Design(rows, Shrink(*half), _ANY_EXPAND), us)


def _expands(kind: str, points: Sequence[Sequence[Any]]) -> Iterator[Half]:
    """Yield measurements of expand. Of shrink's design only the part matters: how many partial sums of h there are."""
    for tokens, adapters, ranks, rows, part, *half, us in points:
        if rows in OWN_ROWS:
            shrink = Shrink(_ANY_SHRINK.ranks, part, min(part, _ANY_SHRINK.step), _ANY_SHRINK.warps, _ANY_SHRINK.stages)
            yield Half(kind, tokens, adapters, ranks, Design(rows, shrink, Expand(*half)), us)


def design_of(written: dict[str, Any], *, early: bool = False, beside: bool = False) -> Design:
    return Design(written["rows"], Shrink(*written["shrink"]), Expand(*written["expand"]), early, beside)
