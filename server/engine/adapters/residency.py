"""The adapters on the device: the slot and the range of the arena of each, and the leases on it.

A lease holds the adapters of one sequence: all of them or none, so that two mixtures never wait for each other.
A key is an adapter's digest, with the task behind it where a method has several (`WeightedAdapter.key`): each is an
adapter of its own here. Those that no lease holds and nobody has pinned stay until their slot or range is needed, least
recently used first out. All of this runs on the step loop's thread; only the loads that it starts run elsewhere.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from peftserve.adapters.errors import AdapterTooLarge

from ...wire.messages import WeightedAdapter
from ..scheduling.sequence import Lease
from .arena_places import ArenaPlace, ArenaPlaces
from .host_tier import HostTier, digest_of
from .loader import AdapterLoader, Load
from .mirror import Mirror
from .packing import Blob
from .preparation import PreparedAdapter, Slots
from .ranges import RangeAllocator
from .residents import Resident, Residents

MOST_DURATIONS = 1024  # of loads, where nobody takes them


class AdapterResidency:
    """What is on the device, and what is to get there.

    ranges: of the arena. max_loras: number of slots. mirror: follows what is done to the slots.
    folder_of: a digest to the folder of its files, which the mirror is told.
    """

    def __init__(
        self,
        loader: AdapterLoader,
        slots: Slots,
        host: HostTier,
        ranges: RangeAllocator,
        max_loras: int,
        mirror: Mirror | None = None,
        folder_of: Callable[[str], Path] = Path,
    ) -> None:
        self.host = host
        self.num_loads = 0
        self.num_evictions = 0
        self.load_seconds: deque[float] = deque(maxlen=MOST_DURATIONS)  # whoever accounts for them takes them out
        self._loader = loader
        self._slots = slots
        self._mirror = mirror or Mirror()
        self._folder_of = folder_of
        self._places = ArenaPlaces(ranges)
        self._max_loras = max_loras
        self._free_slots = list(range(max_loras - 1, -1, -1))
        self._residents = Residents()
        self._loading: dict[str, Load[PreparedAdapter]] = {}  # residents on their way, not yet attached
        self._fetches: dict[str, Future[Blob]] = {}
        self._asked: dict[str, float] = {}
        self._failures: dict[tuple[str, ...], BaseException] = {}
        self.pinned: frozenset[str] = frozenset()  # set by `pin`
        self._absent: set[str] = set()  # pinned ones that are not on the device, and are to get there

    # For the scheduler

    def prepare(self, adapters: Sequence[WeightedAdapter]) -> bool:
        """Return whether all adapters are in host memory or on the device; start to fetch those that are not."""
        missing = [a.key for a in adapters if a.key not in self._residents and self.host.get(a.key) is None]
        for adapter in adapters:
            self._asked.setdefault(adapter.key, time.monotonic())
        for digest in missing:
            if digest not in self._fetches:
                self._fetches[digest] = self._loader.fetch(digest)
        return not missing

    def reserve(self, adapters: Sequence[WeightedAdapter]) -> Lease | None:
        """Return slots for prepared adapters; None if the device has no room until a lease is released."""
        digests = [adapter.key for adapter in adapters]
        residents = self._hold(digests)
        if residents is None:
            if self._is_possible(digests):
                self._make_way(digests)
            return None
        return Lease(
            slots=tuple(resident.slot for resident in residents),
            weights=tuple(adapter.weight for adapter in adapters),
            digests=tuple(digests),
            prefix_length=sum(resident.layout.prefix_length for resident in residents),
            vocabularies=tuple(resident.layout.vocabulary for resident in residents),
            invocation=residents[0].layout.invocation if len(residents) == 1 else (),
            residents=tuple(residents),
        )

    def is_ready(self, lease: Lease) -> bool:
        return all(resident.attached for resident in lease.residents)

    def ready_since(self, lease: Lease) -> float:
        """Return since when a lease's adapters are there, of time.monotonic(); 0 where it has none."""
        return max((resident.attached for resident in lease.residents), default=0.0)

    def release(self, lease: Lease) -> None:
        for resident in lease.residents:
            self._residents.let_go(resident)

    # For the engine

    def poll(self) -> dict[tuple[str, ...], BaseException]:
        """Take in what the loader has finished. Returns what failed since the last call, and why.

        That is one digest that could not be fetched, or several that do not fit the device together.
        """
        awaited = set(self._fetches)
        for digest in [d for d, fetch in self._fetches.items() if fetch.done()]:
            fetch = self._fetches.pop(digest)
            if (error := fetch.exception()) is not None:
                self._failures[(digest,)] = error
                self._asked.pop(digest, None)
                self._absent.discard(digest)  # until somebody asks for it again
            else:
                self.host.put(digest, fetch.result(), keep=self._asked)
        for digest in [digest for digest, load in self._loading.items() if load.done()]:
            self._attach(digest)
        # What was just fetched is about to be reserved: its load counts from when it was asked for.
        self._asked = {digest: asked for digest, asked in self._asked.items() if digest in awaited}
        self._bring_absent()
        failures, self._failures = self._failures, {}
        return failures

    def pin(self, keys: Iterable[str]) -> None:
        """Never evict these and no others from now on, and load those that were not pinned before and are not there.

        The caller sees to the bound. One that was pinned before and is not there is on its way, or has failed to get
        there: it comes when somebody asks for it.

        They lie at the end of the arena, so that they do not split the room for the others; what is there already
        stays where it is, unless another adapter could never get its place for it.
        """
        before, self.pinned = self.pinned, frozenset(keys)
        self._absent = (self._absent & self.pinned) | self.pinned.difference(before, self._residents)
        self._bring_absent()

    def _bring_absent(self) -> None:
        for key in tuple(self._absent):
            self.bring(key)

    def bring(self, key: str) -> bool:
        """Return whether an adapter is on the device, and else do what gets it there next. Nothing holds it there."""
        if key in self._residents:
            return key not in self._loading
        if key in self.pinned:
            self._absent.add(key)
        if self.prepare([WeightedAdapter(key)]) and not self._load(key) and self._is_possible([key]):
            self._make_way([key])
        return False

    def is_loading(self) -> bool:
        return bool(self._fetches or self._loading)

    def keep(self, digest: str, blob: Blob) -> None:
        """Keep a blob on the host that was compiled for another reason, such as an upload's inspection."""
        self.host.put(digest, blob, keep=self._asked)

    def drop(self, digest: str) -> bool:
        """Forget an adapter with all its tasks. Returns False while one is held or being loaded: call again."""
        keys = {key for key in (*self._residents, *self._fetches) if digest_of(key) == digest}
        held = [key for key in keys.union(self.host.keys_of(digest)) if not self._drop(key)]
        return not held

    def _drop(self, key: str) -> bool:
        resident = self._residents.get(key)
        if key in self._fetches or key in self._loading or (resident is not None and resident.holders):
            return False
        if resident is not None:
            self._remove(key)
        self.host.drop(key)
        return True

    def digests(self) -> list[str]:
        return [digest for digest in self._residents if digest not in self._loading]

    def num_elements(self) -> int:
        """Return the elements of the arena in use."""
        return self._places.num_used

    # Slots and ranges

    def _hold(self, digests: Sequence[str]) -> list[Resident] | None:
        """Hold these, and load those that are not there. Returns None, and none is held, if there is no room for all.

        One that has begun to load then may finish, so that it is there the next time.
        """
        held = {digest: self._residents.hold(digest) for digest in digests if digest in self._residents}
        for digest in [digest for digest in digests if digest not in held]:
            if not self._load(digest):
                for resident in held.values():
                    self._residents.let_go(resident)
                return None
            held[digest] = self._residents.hold(digest)
        return [held[digest] for digest in digests]

    def _load(self, digest: str) -> bool:
        """Begin to load an adapter that is on the host. Returns False if there is no room for it."""
        blob = self.host.get(digest)
        assert blob is not None, "reserved an adapter that was not prepared"
        placed = self._places.put(blob, partial(self._make_room, at_end=digest in self.pinned))
        if placed is None:
            return False
        place, copies = placed
        prepare = partial(self._slots.prepare, place.start, blob.layout, self._places.starts(place))
        slot, own = self._free_slots.pop(), self._loader.load(copies, prepare)
        self._loading[digest] = self._mirror.load(digest, self._folder_of, slot, place.start, own)
        requested = self._asked.get(digest, time.monotonic())
        self._residents[digest] = Resident(digest, slot, place, blob.layout, requested)
        self._absent.discard(digest)
        return True

    def _is_possible(self, digests: Sequence[str]) -> bool:
        """Return whether these have room with only pinned ones beside them; note a failure if waiting cannot help."""
        beside = self.pinned.difference(digests)
        slots = self._max_loras - len(beside)
        what = "together, the adapters of this mixture need" if len(digests) > 1 else "this adapter needs"
        if self.size([*digests, *beside]) > self._places.capacity:
            left = f"the {len(beside)} pinned ones leave of --adapter-memory" if beside else "--adapter-memory allows"
            error = AdapterTooLarge(f"{what} more memory on the device than {left}")
        elif len(digests) > slots:
            left = f"the {len(beside)} pinned ones leave {slots} of --max-loras {self._max_loras}"
            error = AdapterTooLarge(f"{what} {len(digests)} slots, and {left}")
        else:
            return True
        self._failures[tuple(digests)] = error
        return False

    def _make_way(self, digests: Sequence[str]) -> None:
        """Evict everything for these if no lease holds anything, but what is pinned only if it lies in their way.

        A mixture that fits an empty device may not fit around those of its own adapters that are there already, nor
        an adapter around pinned ones that were there before they were pinned: these come back, at the end.
        """
        if self._loading or any(resident.holders for resident in self._residents.values()):
            return
        pinned = [resident.place for key, resident in self._residents.items() if key in self.pinned]
        pinned_may_stay = self._places.widest_gap(pinned) >= self.size(self._unpinned(digests))
        for digest in self._unpinned(self._residents) if pinned_may_stay else list(self._residents):
            self._evict(digest)

    def _unpinned(self, digests: Iterable[str]) -> list[str]:
        return [digest for digest in digests if digest not in self.pinned]

    def size(self, digests: Iterable[str]) -> int:
        """Return the elements that these take together, what they share once. What is only on the disk counts as 0."""
        known = (self._known(digest) for digest in digests)
        return self._places.size(place for place in known if place is not None)

    def largest(self, but: Collection[str]) -> int:
        """Return the elements that the largest adapter takes that is on the device or the host, but for some."""
        return max((self.size([key]) for key in {*self._residents, *self.host.keys()}.difference(but)), default=0)

    def _known(self, digest: str) -> ArenaPlace | Blob | None:
        resident = self._residents.get(digest)
        return self.host.peek(digest) if resident is None else resident.place

    def _make_room(self, size: int, *, at_end: bool) -> int | None:
        """Evict adapters that no lease holds and nobody has pinned until there are a free slot and a range.

        Returns the start of the range; None if there is no room. size: of it. at_end: where it is to be.
        """
        while not self._free_slots or (start := self._places.allocate(size, at_end=at_end)) is None:
            victim = next((key for key in self._residents if self._may_go(key)), None)
            if victim is None:
                return None
            self._evict(victim)
        return start

    def _may_go(self, key: str) -> bool:
        return not self._residents[key].holders and key not in self._loading and key not in self.pinned

    def _evict(self, digest: str) -> None:
        self._remove(digest)
        self.num_evictions += 1

    def _attach(self, digest: str) -> None:
        resident = self._residents[digest]
        try:
            prepared = self._loading.pop(digest).result()
        except Exception as error:  # the device had no memory for what belongs to it, or a fault of ours
            self._vacate(digest)  # a pinned one too, until somebody asks for it again
            self._failures[(digest,)] = error
            return
        self._slots.attach(resident.slot, prepared)
        self._mirror.attach(resident.slot)
        self.num_loads += 1
        resident.attached = time.monotonic()
        self.load_seconds.append(resident.attached - resident.requested)

    def _remove(self, digest: str) -> None:
        self._slots.detach(self._residents[digest].slot)
        self._mirror.detach(self._residents[digest].slot)
        self._vacate(digest)
        if digest in self.pinned:
            self._absent.add(digest)

    def _vacate(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        self._places.free(resident.place)
        self._free_slots.append(resident.slot)

    def check_integrity(self) -> None:
        """Raises AssertionError where slots, ranges and residents do not agree."""
        self._places.check_integrity(resident.place for resident in self._residents.values())
        self.host.check_integrity()
        slots = sorted([*self._free_slots, *(r.slot for r in self._residents.values())])
        assert slots == list(range(self._max_loras)), f"slots are lost or doubled: {slots}"
        assert self._loading.keys() <= self._residents.keys(), "what is on its way to the device has no place there"
        assert self._absent <= self.pinned.difference(self._residents), "what is pinned is there, and said to be absent"
        assert all(r.holders >= 0 for r in self._residents.values()), "an adapter was released too often"
