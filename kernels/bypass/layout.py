"""How one adapter lies in the arena, and the interface of a backend.

Offsets are in elements of the arena's dtype, from the start of the adapter's blob. Knows no adapter format and no
scheduler.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

import torch


class RowSet(StrEnum):
    """Which rows of a step reach a site."""

    TOKENS = "tokens"  # every token of the step
    LOGITS = "logits"  # only the rows that reach the output head


@dataclass(frozen=True)
class Group:
    """Sites that read one and the same input tensor (q, k and v; gate and up), so that one shrink serves them all.

    in_features: width of the shared input; number of embedding rows when `gather`. out_features: width of each site's
    output, in the group's order. rows: which rows of the step reach the sites. gather: the input is row ids, and A is
    stored as (in_features, rank), so that a row is read and not multiplied.
    """

    in_features: int
    out_features: tuple[int, ...]
    rows: RowSet = RowSet.TOKENS
    gather: bool = False


@dataclass(frozen=True)
class GroupLayout:
    """The factors of one adapter for one group.

    a: offset of the stacked A, (sum of ranks, in_features) row-major; (in_features, sum of ranks) when gathered.
    ranks: rank of each site; 0 where the adapter leaves the site alone.
    b: offset of each site's B, stored transposed as (rank, out_features) row-major; unused where the rank is 0.
    scales, biases: offsets of each site's fused scale and bias, (out_features,) each; None where the site has none, and
        empty where no site has any. Only for backends that fuse them.
    """

    a: int
    ranks: tuple[int, ...]
    b: tuple[int, ...]
    scales: tuple[int | None, ...] = ()
    biases: tuple[int | None, ...] = ()

    @property
    def rank(self) -> int:
        return sum(self.ranks)


BlobLayout = Mapping[int, GroupLayout]
"""Layout by index of the group; groups that the adapter does not touch are absent."""


class Segment(NamedTuple):
    """Rows [start, end) of the step that belong to the adapter in `slot`, whose delta is multiplied by `weight`.

    Segments of different slots may overlap: a mixture is one segment for each of its adapters.
    """

    slot: int
    weight: float
    start: int
    end: int


class StepKind(StrEnum):
    """How the rows of a step share adapters, which decides how launches are cut."""

    EACH = "each"  # hardly at all
    TILES = "tiles"  # a few rows an adapter
    FEW = "few"  # many rows an adapter


@dataclass(frozen=True)
class Capacity:
    """The steps that a captured graph is for: those of up to so many rows, with the grids of a kind.

    Steps of another kind would be served as well, by more programs than needed or by fewer.
    """

    rows: int
    kind: StepKind


def kinds_for(rows: int) -> tuple[StepKind, ...]:
    """Return the kinds whose launches differ at so many rows."""
    if rows <= 2:
        return (StepKind.EACH,)
    return tuple(StepKind) if rows >= 32 else (StepKind.EACH, StepKind.FEW)


Prepared = Any
"""A backend's own form of one adapter at one place of the arena; immutable."""


class BypassBackend(Protocol):
    """The bypasses of one arena. Made once with the arena and the groups; slots come and go.

        for each segment s: y[s.start:s.end] += s.weight · (x[s.start:s.end] Aᵀ) Bᵀ

    Accumulates in fp32 and adds the delta with one rounding to y's dtype. Deterministic. fuses_scale_and_bias: whether
    it also applies the scales and biases that layouts have, as y += s.weight · (scale ⊙ y + bias), where y on the right
    is the output before any delta.
    """

    fuses_scale_and_bias: bool

    def prepare(self, base: int, layout: BlobLayout) -> Prepared:
        """Prepare the blob at element offset `base` of the arena for `attach`, so that no step waits for it.

        May run on any one thread, such as a loader's, while steps run on another.
        """

    def attach(self, slot: int, prepared: Prepared) -> None:
        """Serve `slot` with a prepared adapter. Takes microseconds, whatever the adapter has."""

    def detach(self, slot: int) -> None:
        """Stop serving a slot."""

    def kind_of(self, tokens: Sequence[Segment]) -> StepKind:
        """Return the kind of the graph that serves such a step best."""

    def begin(self, tokens: Sequence[Segment], logits: Sequence[Segment], *, capacity: Capacity | None = None) -> bool:
        """Set the work list of a step: segments over token rows, and over the rows that reach the head.

        capacity: the steps that the launches are for, if not this one alone: what a graph is captured with. Returns
        False if graphs of that capacity have no room for so much work: then call it again without one.
        """

    def lead_in(self) -> None:
        """Launch what the other launches of a step need first, on the current stream.

        Call it once in each forward pass, captured ones too.
        """

    def start(self, group: int, x: torch.Tensor) -> None:
        """Begin what may run beside the base's own product for this input. The group's next `add_` completes it.

        All deltas of the groups before must have been added when this is called.
        """

    def add_(self, group: int, x: torch.Tensor, outputs: Sequence[torch.Tensor | None]) -> None:
        """Add the deltas of the group's sites to their outputs, in place.

        x: (rows, in_features), or (rows,) int64 ids for a gathered group. outputs: (rows, out_features) for each site
        in the group's order, with adjoining columns; None for sites that are to be left out.
        """
