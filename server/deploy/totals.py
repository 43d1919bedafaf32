"""The statistics of several engines as those of one: what they count and hold, added up.

Counters never go back: of a replica that has gone, what it had counted stays. Its engine may come back, and goes on.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from ..wire.messages import EngineStats
from .engines import Engine

COUNTERS = (
    *("prefix_query_tokens", "prefix_hit_tokens", "preemptions", "steps", "adapter_loads", "adapter_evictions"),
    *("adapter_integrity_failures", "queue_timeouts", "failed_steps", "invalid_logits"),
)
GAUGES = (
    *("num_running", "num_waiting", "kv_pages_used", "kv_pages_total", "device_adapter_bytes", "host_adapter_bytes"),
)
STATES = ("state_slots", "state_snapshots")  # None where the model keeps no state
DIGESTS = ("device_adapters", "pinned_adapters")  # and host_adapters, which are told less often
BY_DIGEST = ("running_adapters", "waiting_adapters")


@dataclass
class Totals:
    """What all replicas have counted. counted: the sums of all that there have been.

    dealt: sequences with adapters, by where their replica had these when it was chosen.
    """

    counted: Counter[str] = field(default_factory=Counter)
    dealt: Counter[str] = field(default_factory=Counter)

    def count(self, engine: Engine, stats: EngineStats) -> None:
        """Add what an engine has counted since it told its counters last, on whichever connection that was."""
        told = Counter({name: getattr(stats, name) for name in COUNTERS})
        self.counted.update(told)
        self.counted.subtract(engine.counted)
        engine.counted = told

    def sum(self, replicas: Collection[EngineStats], newest: EngineStats, num_ready: int) -> EngineStats:
        """Return the statistics of all. newest: the message that has just come, whose events are told on once.

        num_ready: of the replicas, those that take sequences.
        The adapters of the host are told on when it has told its own: to join the lists takes milliseconds.
        """
        summed: dict[str, Any] = {
            **{name: self.counted[name] for name in COUNTERS},
            **{name: sum(map(attrgetter(name), replicas)) for name in GAUGES},
            **{name: _sum_of_some(map(attrgetter(name), replicas)) for name in STATES},
            **{name: _joined(map(attrgetter(name), replicas)) for name in DIGESTS},
            **{name: _added(map(attrgetter(name), replicas)) for name in BY_DIGEST},
        }
        return EngineStats(
            **summed,
            replicas=num_ready,
            dealt=dict(self.dealt),
            adapter_load_seconds=newest.adapter_load_seconds,
            damaged_adapters=newest.damaged_adapters,
            host_unchanged=newest.host_unchanged,
            host_adapters=[] if newest.host_unchanged else _joined(stats.host_adapters for stats in replicas),
        )


def _joined(lists: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(digest for digests in lists for digest in digests))


def _sum_of_some(numbers: Iterable[int | None]) -> int | None:
    known = [number for number in numbers if number is not None]
    return sum(known) if known else None


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for some in counts:
        total.update(some)
    return dict(total)
