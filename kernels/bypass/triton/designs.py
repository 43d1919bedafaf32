"""How the two launches of a group are cut into blocks and compiled. Knows no device and no step."""

from dataclasses import dataclass

MOST_PARTS = {"tiles": 16, "rows": 128}
"""Most parts of shrink that expand sums, for tiles of several rows and for single rows."""


@dataclass(frozen=True)
class Shrink:
    """h = x Aᵀ: a block takes `ranks` of one adapter over `part` input features, for one tile of rows.

    step: features at a time, at most `part`; equal where all loads of a block are in flight at once.
    """

    ranks: int
    part: int
    step: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class Expand:
    """y += h B: a block takes `columns` output features of one site, `walked` times one after the other.

    ranks: at a time. Where it walks, h is summed once, and B comes through a loop of so many stages.
    """

    ranks: int
    columns: int
    walked: int
    warps: int
    stages: int = 1


@dataclass(frozen=True)
class Design:
    """One way to cut and compile both launches.

    rows: of a tile, at most; 1: sums of products, without tensor cores. 16 and more: `tl.dot`. early: launched before
    the kernel ahead has ended (programmatic dependent launch, from sm_90 on). beside: shrink on a second stream, beside
    the base's product.
    """

    rows: int
    shrink: Shrink
    expand: Expand
    early: bool = False
    beside: bool = False

    @property
    def most_parts(self) -> int:
        return MOST_PARTS["tiles" if self.rows > 1 else "rows"]


def rows_apart() -> Design:
    """Return the design for steps where each row has an adapter of its own."""
    return Design(1, Shrink(16, 256, 256, warps=4), Expand(16, 512, 1, warps=2), early=True)


def rows_in_tiles() -> Design:
    """Return the design for steps where adapters have several rows."""
    return Design(16, Shrink(16, 1024, 128, warps=2, stages=4), Expand(16, 128, 4, warps=4, stages=3), early=True)


def candidates() -> list[Design]:
    """Return all designs to choose from: what a server compiles before its first step, as far as it fits the device.

    The two that serve everything come first. Then tiles of 16 whose loads are all in flight at once, for small steps;
    wider ones, and such for large ranks; and tiles of 64 rows, for prefill.
    """
    whole, streamed = Shrink(16, 256, 256, warps=4), rows_in_tiles().shrink
    walking = rows_in_tiles().expand
    return [
        rows_apart(),
        rows_in_tiles(),
        Design(16, whole, Expand(16, 256, 1, warps=4), early=True),
        Design(16, whole, walking, early=True),
        Design(16, streamed, Expand(16, 256, 1, warps=4), early=True),
        Design(16, streamed, Expand(16, 256, 4, warps=8, stages=3), early=True),
        Design(16, Shrink(32, 512, 128, warps=4, stages=3), Expand(32, 128, 4, warps=8, stages=3), early=True),
        Design(16, Shrink(64, 1024, 64, warps=4, stages=4), Expand(64, 128, 8, warps=8, stages=3), early=True),
        Design(64, Shrink(64, 1024, 64, warps=4, stages=4), Expand(16, 64, 16, warps=8, stages=3), early=True),
    ]
