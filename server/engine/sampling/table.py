"""A table of how each running sequence is sampled, by its seat: written when it begins, read by whole steps at once."""

import numpy as np
from numpy.typing import NDArray

from .penalties import penalizes
from .randomness import seed_bits
from .rows import SampleRow
from .selection import COLUMNS, Selection


class SamplingTable:
    """The sampling parameters of all seats, as columns. num_seats: how many sequences may run at once."""

    def __init__(self, num_seats: int) -> None:
        self._columns = np.zeros(num_seats, COLUMNS)
        self._rows: list[SampleRow | None] = [None] * num_seats
        self._last: tuple[NDArray[np.int64], Selection] | None = None  # seats that were asked for, and what is there

    def seat(self, seat: int, row: SampleRow) -> None:
        """Set how the sequence on a seat is sampled from now on."""
        params = row.params
        self._rows[seat] = row
        self._columns[seat] = (
            params.temperature,
            params.min_p,
            params.top_k,
            params.top_p,
            seed_bits(row.seed),
            row.num_before,
            row.banned_before if row.banned_token_ids else 0,
            -1 if params.logprobs is None else params.logprobs,
            bool(params.logit_bias),
            penalizes(params),
            row.form is not None,
        )
        self._last = None

    def select(self, seats: NDArray[np.int64]) -> Selection:
        """Select the seats of a step's rows. The same array of seats, which nobody may change, costs no work again."""
        if self._last is None or self._last[0] is not seats:
            rows = [self._rows[seat] for seat in seats.tolist()]
            self._last = seats, Selection(self._columns[seats], rows)
        return self._last[1]
