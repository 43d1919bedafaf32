"""The replicas' engines, also those whose connection has ended: a cut network ends it, and the engine lives on.

The name in a replica's hello is its engine's for life, so what has to outlast a connection is kept by it. Knows names
and numbers; does not know connections.
"""

from collections import Counter
from dataclasses import dataclass, field

MOST_AWAY = 1000  # engines that are remembered while they are away; most have ended


@dataclass
class Engine:
    """name: of its replica. counted: its counters, as it has told them last."""

    name: str
    counted: Counter[str] = field(default_factory=Counter)


class Engines:
    """All engines that are connected, and the last that were."""

    def __init__(self) -> None:
        self._here: dict[str, Engine] = {}
        self._away: dict[str, Engine] = {}  # in the order in which they went

    def come(self, name: str) -> Engine:
        """Return the engine that has connected: the one that went by this name, if any."""
        engine = self._here[name] = self._away.pop(name, Engine(name))
        return engine

    def go(self, engine: Engine) -> None:
        """Take note that a connection has ended, and forget the engine that has been away longest if they are many."""
        self._away[engine.name] = self._here.pop(engine.name)
        if len(self._away) > MOST_AWAY:
            del self._away[next(iter(self._away))]
