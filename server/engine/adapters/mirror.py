"""What else is to be done where an adapter is compiled, loaded, attached and detached, where the base is divided."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from peftserve.adapters.bypass import Bypass

from .loader import Load
from .preparation import PreparedAdapter


class Mirror:
    """Nothing else: the model runs in this process alone. Ranks have a subclass."""

    def load(
        self, key: str, folder_of: Callable[[str], Path], slot: int, start: int, own: Load[PreparedAdapter]
    ) -> Load[PreparedAdapter]:
        """Return the load of an adapter to element `start` of the arena, for a slot.

        folder_of: its digest to the folder of its files. own: its load here.
        """
        return own

    def attach(self, slot: int) -> None:
        """Follow what was just attached."""

    def detach(self, slot: int) -> None:
        """Follow what was just detached."""

    def forget(self, digest: str) -> None:
        """Follow an adapter's release."""


def _whole(bypass: Bypass) -> Bypass:
    return bypass


@dataclass(frozen=True)
class Ranks:
    """What a rank does with adapters. cut: makes its part of one; raises AdapterError. mirror: what others do, too."""

    cut: Callable[[Bypass], Bypass] = _whole
    mirror: Mirror = field(default_factory=Mirror)
