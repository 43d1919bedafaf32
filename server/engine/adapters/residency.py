"""The adapters on the device: the slot and the range of the arena of each, and the leases on it.

A lease pins the adapters of one sequence: all of them or none, so that two mixtures never wait for each other.
A key is an adapter's digest, with the task behind it where a method has several (`WeightedAdapter.key`): each is an
adapter of its own here. Unpinned adapters stay until their slot or range is needed, least recently used first out. All
of this runs on the step loop's thread; only the loads that it starts run elsewhere.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from peftserve.adapters.errors import AdapterTooLarge

from ...wire.messages import WeightedAdapter
from ..scheduling.sequence import Lease
from .host_tier import HostTier, digest_of
from .loader import AdapterLoader, Load
from .packing import AdapterLayout, Blob
from .preparation import PreparedAdapter
from .ranges import RangeAllocator
from .shared_ranges import SharedRanges


@dataclass(slots=True)
class _Resident:
    """An adapter on the device, or on its way there.

    start, size: its range, in elements. holders: leases on it. requested: when it was asked for, of time.monotonic().
    shared: keys of the pieces beside its range.
    """

    slot: int
    start: int
    size: int
    layout: AdapterLayout
    holders: int
    requested: float
    shared: tuple[str, ...]


class Slots(Protocol):
    """Attaches adapters to the model, by slot: `Attachments`."""

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> PreparedAdapter:
        """Return what is to be attached. Runs on the loader's thread."""

    def attach(self, slot: int, adapter: PreparedAdapter) -> None: ...

    def detach(self, slot: int) -> None: ...


class AdapterResidency:
    """What is on the device, and what is to get there.

    ranges: of the arena. max_loras: number of slots.
    """

    def __init__(
        self, loader: AdapterLoader, slots: Slots, host: HostTier, ranges: RangeAllocator, max_loras: int
    ) -> None:
        self.host = host
        self.num_loads = 0
        self.num_evictions = 0
        self.load_seconds: list[float] = []
        self._loader = loader
        self._slots = slots
        self._ranges = ranges
        self._shared = SharedRanges(ranges)
        self._max_loras = max_loras
        self._free_slots = list(range(max_loras - 1, -1, -1))
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._loading: dict[str, Load[PreparedAdapter]] = {}  # residents on their way, not yet attached
        self._fetches: dict[str, Future[Blob]] = {}
        self._asked: dict[str, float] = {}
        self._failures: dict[tuple[str, ...], BaseException] = {}

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
        for digest in digests:
            self._pin(digest, 1)
        for digest in digests:
            if digest not in self._residents and not self._load(digest):
                self._unpin(digests)
                self._check_possible(digests)
                self._make_way()
                return None
        residents = [self._residents[digest] for digest in digests]
        return Lease(
            slots=tuple(resident.slot for resident in residents),
            weights=tuple(adapter.weight for adapter in adapters),
            digests=tuple(digests),
            prefix_length=sum(resident.layout.prefix_length for resident in residents),
            vocabulary=max((resident.layout.vocabulary for resident in residents), default=0),
            invocation=residents[0].layout.invocation if len(residents) == 1 else (),
        )

    def is_ready(self, lease: Lease) -> bool:
        return self._loading.keys().isdisjoint(lease.digests)

    def release(self, lease: Lease) -> None:
        self._unpin(lease.digests)

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
            else:
                self.host.put(digest, fetch.result(), keep=self._asked)
        for digest in [digest for digest, load in self._loading.items() if load.done()]:
            self._attach(digest)
        # What was just fetched is about to be reserved: its load counts from when it was asked for.
        self._asked = {digest: asked for digest, asked in self._asked.items() if digest in awaited}
        failures, self._failures = self._failures, {}
        return failures

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
        return self._ranges.num_used

    # Slots and ranges

    def _pin(self, digest: str, count: int) -> None:
        resident = self._residents.get(digest)
        if resident is not None:
            resident.holders += count
            self._residents.move_to_end(digest)

    def _unpin(self, digests: Sequence[str]) -> None:
        """Release the adapters. One that has begun to load may finish, so that it is there the next time."""
        for digest in digests:
            self._pin(digest, -1)

    def _load(self, digest: str) -> bool:
        blob = self.host.get(digest)
        assert blob is not None, "reserved an adapter that was not prepared"
        held: list[str] = []
        copies: list[tuple[torch.Tensor, int]] = []
        for piece in blob.shared:
            if piece.key in self._shared:
                self._shared.hold(piece.key)
            elif (start := self._make_room(piece.data.numel())) is not None:
                self._shared.put(piece, start)
                copies.append((piece.data, start))
            else:
                break
            held.append(piece.key)
        start = self._make_room(blob.data.numel()) if len(held) == len(blob.shared) else None
        if start is None:
            self._shared.release(held)
            return False
        prepare = partial(self._slots.prepare, start, blob.layout, self._shared.starts(held))
        self._loading[digest] = self._loader.load([*copies, (blob.data, start)], prepare)
        requested = self._asked.get(digest, time.monotonic())
        size = self._ranges.rounded(blob.data.numel())
        self._residents[digest] = _Resident(self._free_slots.pop(), start, size, blob.layout, 1, requested, tuple(held))
        return True

    def _check_possible(self, digests: Sequence[str]) -> None:
        """Note a failure if even an empty device would have no room for these: waiting would not help them."""
        if self._size(digests) > self._ranges.capacity:
            self._failures[tuple(digests)] = AdapterTooLarge(
                "together, the adapters of this mixture need more memory on the device than --adapter-memory allows"
            )

    def _make_way(self) -> None:
        """Evict everything if no lease holds anything.

        A mixture that fits an empty device may not fit around those of its own adapters that are there already.
        """
        if not self._loading and all(resident.holders == 0 for resident in self._residents.values()):
            for digest in list(self._residents):
                self._evict(digest)

    def _size(self, digests: Sequence[str]) -> int:
        """Return the elements that these take together, counting what they share once."""
        own = 0
        shared: dict[str, int] = {}
        for digest in digests:
            if (resident := self._residents.get(digest)) is not None:
                own += resident.size
                shared |= {key: self._shared.size(key) for key in resident.shared}
                continue
            blob = self.host.get(digest)
            assert blob is not None, "reserved an adapter that was not prepared"
            own += self._ranges.rounded(blob.data.numel())
            shared |= {piece.key: self._ranges.rounded(piece.data.numel()) for piece in blob.shared}
        return own + sum(shared.values())

    def _make_room(self, size: int) -> int | None:
        """Evict adapters that no lease holds until there are a free slot and a range of `size` elements.

        Returns the start of the range; None if there is no room.
        """
        while not self._free_slots or (start := self._ranges.allocate(size)) is None:
            victim = next((d for d, r in self._residents.items() if not r.holders and d not in self._loading), None)
            if victim is None:
                return None
            self._evict(victim)
        return start

    def _evict(self, digest: str) -> None:
        self._remove(digest)
        self.num_evictions += 1

    def _attach(self, digest: str) -> None:
        resident = self._residents[digest]
        self._slots.attach(resident.slot, self._loading.pop(digest).result())
        self.num_loads += 1
        self.load_seconds.append(time.monotonic() - resident.requested)

    def _remove(self, digest: str) -> None:
        resident = self._residents.pop(digest)
        self._slots.detach(resident.slot)
        self._ranges.free(resident.start)
        self._shared.release(resident.shared)
        self._free_slots.append(resident.slot)

    def check_integrity(self) -> None:
        """Raises AssertionError where slots, ranges and residents do not agree."""
        self._ranges.check_integrity()
        self.host.check_integrity()
        slots = sorted([*self._free_slots, *(r.slot for r in self._residents.values())])
        assert slots == list(range(self._max_loras)), f"slots are lost or doubled: {slots}"
        shared = Counter(key for resident in self._residents.values() for key in resident.shared)
        assert shared == self._shared.holders(), "a shared piece's holders are not the adapters that have it"
        assert self._loading.keys() <= self._residents.keys(), "what is on its way to the device has no place there"
        assert all(r.holders >= 0 for r in self._residents.values()), "an adapter was released too often"
