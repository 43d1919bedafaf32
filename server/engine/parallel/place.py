"""Which of the ranks a process is, and where they meet."""

from pathlib import Path
from typing import NamedTuple


class Place(NamedTuple):
    """One of `size` ranks. meeting: the file at which all of them meet."""

    rank: int
    size: int
    meeting: Path
