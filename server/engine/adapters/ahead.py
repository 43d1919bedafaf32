"""Adapters that get to the device ahead of use: those that are pinned, and those that somebody asked to be loaded.

Says what may be pinned. Runs on the step loop's thread and never waits: `poll` goes on with what is due.
"""

import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field

from peftserve.adapters.errors import AdapterConflict, AdapterError, AdapterNotFound, AdapterTooLarge

from ...wire.messages import AdapterLevel, WeightedAdapter
from ..faults import of_adapter
from .residency import AdapterResidency

PINNED_SHARE = 0.5  # of the arena, for pinned adapters
PATIENCE = 10.0  # seconds that a load waits for a slot, before it is answered from the host


@dataclass
class _Pinning:
    """A call that says which adapters are pinned.

    all: these. left: those that are still to be taken in. largest_other: the elements that the largest of all others
    takes; found when the first one is taken in.
    """

    all: frozenset[str]
    left: deque[str]
    largest_other: int | None = None
    done: Future[None] = field(default_factory=Future)
    problem: AdapterError | None = None  # the first one


@dataclass
class _Load:
    """An adapter that is to be loaded. waiting: one future a call. deadline: of time.monotonic()."""

    deadline: float
    waiting: list[Future[AdapterLevel]] = field(default_factory=list)


class AheadOfUse:
    """The pinned adapters, and loads of what nobody holds.

    max_loras: number of slots. capacity: elements of the arena, of `itemsize` bytes each.
    """

    def __init__(self, residency: AdapterResidency, max_loras: int, capacity: int, itemsize: int) -> None:
        self._residency = residency
        self._max_loras = max_loras
        self._capacity = capacity
        self._itemsize = itemsize
        self.pinned_size = 0  # elements that the pinned adapters take; the loader's thread reads it
        self._pinnings: deque[_Pinning] = deque()
        self._loads: dict[str, _Load] = {}

    def pin(self, digests: Iterable[str]) -> Future[None]:
        """Keep these adapters and no others on the device for good, once they are there.

        What is pinned already and among them stays so; the others are taken in, in their order, as far as they fit.
        All slots but one may be pinned, and PINNED_SHARE of the arena, less where another adapter that is known here
        needs the room. The future is done when it is known what each takes; it raises AdapterConflict or
        AdapterTooLarge with the bound for what is beyond it, or what else stands against one. Those are not pinned, and
        the others are.
        """
        ordered = dict.fromkeys(digests)
        pinning = _Pinning(frozenset(ordered), deque(ordered))
        self._pinnings.append(pinning)
        return pinning.done

    def load(self, digest: str) -> Future[AdapterLevel]:
        """Bring an adapter to the device, which may leave it again when others need its room.

        The future gives `device` when it is there, or `host` if no slot has become free in PATIENCE seconds. It raises
        AdapterError if the adapter cannot be loaded.
        """
        load = self._loads.setdefault(digest, _Load(time.monotonic() + PATIENCE))
        load.waiting.append(Future())
        return load.waiting[-1]

    def forget(self, digest: str) -> None:
        """Unpin an adapter that is to be released, and end the loads of it."""
        self._pin(self._residency.pinned - {digest})
        for pinning in self._pinnings:
            pinning.left = deque(other for other in pinning.left if other != digest)
        if (load := self._loads.pop(digest, None)) is not None:
            _fail(load, AdapterNotFound("the adapter was removed while it was being loaded"))

    def is_busy(self) -> bool:
        """Return whether a call is not answered yet."""
        return bool(self._pinnings or self._loads)

    def poll(self, failures: Mapping[tuple[str, ...], BaseException]) -> None:
        """Go on with all calls. failures: what could not be loaded since the last time, and why."""
        while self._pinnings and self._goes_on(self._pinnings[0], failures):
            pinning = self._pinnings.popleft()
            if pinning.problem is None:
                pinning.done.set_result(None)
            else:
                pinning.done.set_exception(pinning.problem)
        for digest in list(self._loads):
            self._go_on(digest, failures.get((digest,)))

    def _goes_on(self, pinning: _Pinning, failures: Mapping[tuple[str, ...], BaseException]) -> bool:
        """Take in all adapters whose sizes are known. Returns whether that is all of them."""
        residency = self._residency
        if not residency.pinned <= pinning.all:
            self._pin(residency.pinned & pinning.all)
        while pinning.left:
            digest = pinning.left[0]
            if (failure := failures.get((digest,))) is not None:
                problem: AdapterError | None = of_adapter(failure)
            elif not residency.prepare([WeightedAdapter(digest)]):
                return False
            elif (problem := self._objection(digest, pinning)) is None:
                self._pin(residency.pinned | {digest})
                residency.bring(digest)  # one that was pinned before may have failed to get there
            pinning.problem = pinning.problem or problem
            pinning.left.popleft()
        return True

    def _pin(self, digests: frozenset[str]) -> None:
        self._residency.pin(digests)
        self.pinned_size = self._residency.size(digests)

    def _objection(self, digest: str, pinning: _Pinning) -> AdapterError | None:
        """Return what stands against pinning one more adapter; None if nothing does."""
        residency, slots = self._residency, self._max_loras - 1
        if digest in residency.pinned:
            return None
        if len(residency.pinned) >= slots:
            return AdapterConflict(
                f"{slots} adapters can be pinned with --max-loras {self._max_loras}, so that others have a slot"
            )
        if pinning.largest_other is None:
            pinning.largest_other = residency.largest(pinning.all)
        bound = min(int(self._capacity * PINNED_SHARE), self._capacity - pinning.largest_other)
        needed = residency.size({*residency.pinned, digest})
        if needed <= bound:
            return None
        bound, needed = bound * self._itemsize, needed * self._itemsize
        return AdapterTooLarge(
            f"pinned adapters may take {max(bound, 0)} bytes of --adapter-memory, so that others have room, and with "
            f"this one they would take {needed}"
        )

    def _go_on(self, digest: str, failure: BaseException | None) -> None:
        load = self._loads[digest]
        if failure is not None:
            _fail(load, of_adapter(failure))
        elif self._residency.bring(digest):
            _answer(load, "device")
        elif time.monotonic() > load.deadline and digest in self._residency.host:
            _answer(load, "host")
        else:
            return
        del self._loads[digest]


def _answer(load: _Load, level: AdapterLevel) -> None:
    for future in load.waiting:
        future.set_result(level)


def _fail(load: _Load, error: AdapterError) -> None:
    for future in load.waiting:
        future.set_exception(error)
