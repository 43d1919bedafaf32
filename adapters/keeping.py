"""What an operator has kept of adapters."""

from dataclasses import dataclass, field

from .quotas import Quota


@dataclass(frozen=True)
class Keeping:
    """What is kept. deleted: seconds for which what is deleted can be restored; 0: it goes at once.

    versions: the newest so many of a name; 0: all of them. quota: of each owner.
    """

    deleted: float = 0.0
    versions: int = 0
    quota: Quota = field(default_factory=Quota)


ALL = Keeping()
"""Every version, until it is deleted."""
