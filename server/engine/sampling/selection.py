"""The part of a step's sampling that stays while the same sequences run: all but random numbers, bans and penalties."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..staging import Arrays
from .masks import masks
from .penalties import edits
from .rows import SampleRow
from .truncation import cuts

COLUMNS = np.dtype(
    [
        ("temperature", np.float32),
        ("min_p", np.float32),
        ("top_k", np.int64),
        ("top_p", np.float64),
        ("seed", np.uint64),
        ("num_before", np.int64),
        ("banned_before", np.int64),  # 0 where nothing is banned
        ("logprobs", np.int64),  # -1 for none
        ("biased", np.bool_),
        ("penalized", np.bool_),
        ("formed", np.bool_),
    ]
)

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: the quotient would overflow before the draw could differ."""

Ints = NDArray[np.int64]


class Selection:
    """How the rows of steps with the same sequences are sampled.

    drawn: the rows that are not greedy; temperature, seeds and cuts are theirs, in order. max_k: their highest top-k.

    reported: the rows that want logprobs, with as many alternatives as `tops` says.
    needs_tokens: whether any row's scores depend on what tokens came before.
    """

    def __init__(self, columns: NDArray[np.void], rows: Sequence[SampleRow | None]) -> None:
        """Read the parameters of a step's rows.

        columns: (rows,) with the fields of `COLUMNS`. rows: what is read for edits only.
        """
        self.num_rows = len(columns)
        # Columns are copied: even a view of one number has the stride of a whole row.
        self.drawn: Ints = np.flatnonzero(columns["temperature"] >= _GREEDY_BELOW)
        of_drawn = columns[self.drawn]
        self.temperature = of_drawn["temperature"].copy()
        self.seeds = of_drawn["seed"].copy()
        self.cuts: list[Arrays] = cuts(of_drawn["min_p"], of_drawn["top_k"], of_drawn["top_p"])
        self.max_k = int(of_drawn["top_k"].max(initial=0))
        self.reported: Ints = np.flatnonzero(columns["logprobs"] >= 0)
        self.tops: list[int] = columns["logprobs"][self.reported].tolist()
        self.num_before = columns["num_before"].copy()
        self.needs_tokens = bool(columns["penalized"].any() or columns["formed"].any())
        self._biased = np.flatnonzero(columns["biased"]).tolist()
        self._penalized = np.flatnonzero(columns["penalized"]).tolist()
        self._formed = np.flatnonzero(columns["formed"]).tolist()
        self._banned_before = columns["banned_before"].copy() if columns["banned_before"].any() else None
        self._rows = rows

    def edits(self, positions: Ints, width: int) -> list[Arrays]:
        """Collect the edits for tokens that come at these positions of the outputs. width: of the logits."""
        banned = [] if self._banned_before is None else np.flatnonzero(positions < self._banned_before).tolist()
        return edits(self._of(self._biased), self._of(banned), self._of(self._penalized), width)

    def masks(self, width: int) -> Arrays:
        """Collect the masks of rows whose output has a form, all of which has been followed. width: of the logits."""
        return masks(self._of(self._formed), width)

    def _of(self, places: list[int]) -> dict[int, SampleRow]:
        return {place: row for place in places if (row := self._rows[place]) is not None}
