"""The replicas' engines, also those whose connection has ended: a cut network ends it, and the engine lives on.

The name in a replica's hello is its engine's for life, so what has to outlast a connection is kept by it. Knows names,
numbers and digests; does not know connections.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

MOST_AWAY = 1000  # engines that are remembered while they are away; most have ended
MOST_UNRELEASED = 1000  # digests of one engine; it evicts what it holds beyond, when others need the room


@dataclass
class Engine:
    """name: of its replica. counted: its counters, as it has told them last.

    unreleased: digests of adapters that were released, which it has not confirmed; the oldest first.
    """

    name: str
    counted: Counter[str] = field(default_factory=Counter)
    unreleased: dict[str, None] = field(default_factory=dict)

    def release(self, digest: str) -> None:
        """Take note that an adapter shall leave its memory. `confirm` says when it has."""
        self.confirm(digest)
        self.unreleased[digest] = None
        if len(self.unreleased) > MOST_UNRELEASED:
            del self.unreleased[next(iter(self.unreleased))]

    def confirm(self, digest: str) -> None:
        """Take note that nothing is to leave its memory by this digest any more."""
        self.unreleased.pop(digest, None)


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

    def release(self, digest: str) -> None:
        """Take note that an adapter shall leave the memory of all engines."""
        for engine in self._all():
            engine.release(digest)

    def retain(self, digests: Iterable[str]) -> None:
        """Take note that adapters are there anew, and leave no memory that they have not left yet."""
        for digest in digests:
            for engine in self._all():
                engine.confirm(digest)

    def _all(self) -> Iterator[Engine]:
        yield from self._here.values()
        yield from self._away.values()
