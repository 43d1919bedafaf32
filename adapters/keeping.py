"""What an operator has kept of adapters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Keeping:
    """What is kept. deleted: seconds for which what is deleted can be restored; 0: it goes at once.

    versions: the newest so many of a name; 0: all of them.
    """

    deleted: float = 0.0
    versions: int = 0


ALL = Keeping()
"""Every version, until it is deleted."""
