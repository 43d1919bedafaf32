"""A choice of designs that tests can predict."""

from collections.abc import Sequence

from peftserve.kernels.bypass.triton.designs import Design, rows_apart, rows_in_tiles
from peftserve.kernels.bypass.triton.plan import FEWEST_SHARING


class ByRows:
    """The choice of designs by how many rows share an adapter."""

    def design(self, rows: int, segments: Sequence[int], rank: int, width: int) -> Design:
        return rows_in_tiles() if sum(segments) >= FEWEST_SHARING * len(segments) else rows_apart()

    def all_designs(self) -> list[Design]:
        return [rows_apart(), rows_in_tiles()]
