"""How many replicas there should be, by what runs and waits, and by whether their adapter memory is too small.

A pure function of numbers. Knows nothing of where they come from, nor of who starts replicas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

FULL = 0.7  # share of the places in steps that should be taken: beyond, what comes in bursts waits
CHURN = 0.5  # evictions from the device a second, of one replica, from which on one more has room for the adapters


@dataclass(frozen=True)
class Pressure:
    """What presses on one replica, on the mean of the last seconds.

    sequences: that run or wait. places: sequences that run at once. evictions: of adapters from the device, a second.
    """

    sequences: float
    places: float
    evictions: float


def replicas_for(pressures: Sequence[Pressure], least: int, most: int) -> int:
    """Return how many replicas there should be, where those that there are say what presses on them."""
    if not pressures:
        return least
    return min(most, max(least, _by_queue(pressures), _by_memory(pressures)))


def _by_queue(pressures: Sequence[Pressure]) -> int:
    places = sum(pressure.places for pressure in pressures) / len(pressures)
    return math.ceil(sum(pressure.sequences for pressure in pressures) / (FULL * places))


def _by_memory(pressures: Sequence[Pressure]) -> int:
    """Return one more while adapters push each other out, as many while some do, and any number while none does."""
    evictions = sum(pressure.evictions for pressure in pressures)
    if evictions > CHURN * len(pressures):
        return len(pressures) + 1
    return len(pressures) if evictions else 0
