"""What a merge's process is told and what it tells: one line of JSON each. No torch."""

import msgspec

from .kinds import Options
from .plan import MergeSource

MODULE = "peftserve.adapters.merging"


class MergeOrder(msgspec.Struct, frozen=True):
    """The first line of the process's standard input, whose end means that nobody wants the merge any more.

    folder: takes the merged adapter's files, and has none yet.
    """

    sources: list[MergeSource]
    options: Options
    folder: str


class MergeProgress(msgspec.Struct, frozen=True, tag="progress"):
    """So many parts of so many are done."""

    done: int
    total: int


class MergeFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The merge cannot be made. kind: name of a class of `errors`, which `error_of` raises again."""

    kind: str
    message: str
    param: str | None


class MergeDone(msgspec.Struct, frozen=True, tag="done"):
    """All files are on the disk."""


MergeMessage = MergeProgress | MergeFailed | MergeDone
