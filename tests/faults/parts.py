"""What is done to one server, as a table: a name, and how much of it is enough for each run of the tests."""

import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from . import disk, fuzz, hostile, kills
from .subject import Subject


class Part(NamedTuple):
    """run: gives faults for so many rounds, and raises AssertionError where something has not outlived them.

    few: rounds in the tests. many: at each turn of a longer run. injected: whether it needs the library of `shim.c`.
    """

    run: Callable[[Subject, random.Random, int], Awaitable[None]]
    few: int
    many: int
    injected: bool = False


PARTS = {
    "disk": Part(disk.change, few=6, many=30, injected=True),
    "reading": Part(disk.read, few=2, many=10, injected=True),
    "memory": Part(disk.allocate, few=4, many=30, injected=True),
    "requests": Part(fuzz.requests, few=200, many=5000),
    "clients": Part(hostile.clients, few=1, many=5),
    "pauses": Part(kills.pause, few=2, many=20),
    "clock": Part(kills.jump, few=3, many=12, injected=True),
    "kills": Part(kills.kill, few=len(kills.KILLS), many=20),
}
