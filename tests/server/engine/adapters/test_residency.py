"""Leases of adapters, with loads that finish when the test says so and a backend that only keeps books."""

from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from peftserve.adapters.errors import AdapterTooLarge, InvalidAdapter
from peftserve.server.engine.adapters.host_tier import HostTier
from peftserve.server.engine.adapters.loader import AdapterLoader
from peftserve.server.engine.adapters.packing import AdapterLayout, Blob, SharedPiece
from peftserve.server.engine.adapters.ranges import RangeAllocator
from peftserve.server.engine.adapters.residency import AdapterResidency
from peftserve.server.engine.scheduling.sequence import Lease
from peftserve.server.wire.messages import WeightedAdapter

FLOAT, ALIGNMENT = 4, 4
SIZES = {"a": 8, "b": 8, "c": 12, "d": 16, "e": 4, "f": 24}
MOST_TRIES = 4
CAPACITY = 32
# What a and b, and b and e have in common, where a test says so.
_AB, _BE = SharedPiece("ab", torch.zeros(4)), SharedPiece("be", torch.zeros(8))
SHARED: Mapping[str, tuple[SharedPiece, ...]] = {"a": (_AB,), "b": (_AB, _BE), "e": (_BE,)}
SHARED_ELEMENTS = 12
MIXTURES = [("a",), ("b",), ("c",), ("d",), ("e",), ("a", "b"), ("b", "a"), ("c", "d"), ("e", "a"), ("a", "b", "c")]


Load = tuple[list[tuple[torch.Tensor, int]], Callable[[], Any], Future[Any]]


class FakeLoader:
    """fetches, loads: what was asked for and has not been finished, oldest first."""

    def __init__(self) -> None:
        self.fetches: list[tuple[str, Future[Blob]]] = []
        self.loads: list[Load] = []

    def fetch(self, digest: str) -> Future[Blob]:
        assert digest not in dict(self.fetches), "fetched twice at once"
        self.fetches.append((digest, Future()))
        return self.fetches[-1][1]

    def load(self, pieces: list[tuple[torch.Tensor, int]], prepare: Callable[[], Any]) -> Future[Any]:
        self.loads.append((pieces, prepare, Future()))
        return self.loads[-1][2]


class FakeBackend:
    """attached: slot to what was prepared: start in the arena, layout, and where the pieces beside it begin."""

    def __init__(self) -> None:
        self.attached: dict[int, tuple[int, AdapterLayout, Mapping[str, int]]] = {}

    def prepare(self, base: int, layout: AdapterLayout, shared: Mapping[str, int]) -> Any:
        return base, layout, shared

    def attach(self, slot: int, adapter: Any) -> None:
        assert slot not in self.attached
        self.attached[slot] = adapter

    def detach(self, slot: int) -> None:
        del self.attached[slot]


class Device:
    """A residency with its fakes, and blobs of the sizes given, whose layouts are their own."""

    def __init__(
        self,
        make_blob: Callable[[int], Blob],
        capacity: int = CAPACITY,
        slots: int = 3,
        host_bytes: int = 1 << 20,
        shared: Mapping[str, tuple[SharedPiece, ...]] | None = None,
    ) -> None:
        self.blobs: Mapping[str, Blob] = {
            digest: replace(make_blob(size), shared=(shared or {}).get(digest, ())) for digest, size in SIZES.items()
        }
        self.loader, self.backend = FakeLoader(), FakeBackend()
        self.host = HostTier(host_bytes)
        self.failures: dict[tuple[str, ...], BaseException] = {}  # of all loads
        self.residency = AdapterResidency(
            cast(AdapterLoader, self.loader),
            self.backend,
            self.host,
            RangeAllocator(capacity, ALIGNMENT),
            slots,
        )

    def finish_fetches(self, error: BaseException | None = None) -> dict[tuple[str, ...], BaseException]:
        for digest, future in self.loader.fetches:
            future.set_exception(error) if error else future.set_result(self.blobs[digest])
        self.loader.fetches.clear()
        return self.residency.poll()

    def fail_a_load(self) -> dict[tuple[str, ...], BaseException]:
        """Let the oldest load fail for want of memory."""
        self.loader.loads.pop(0)[2].set_exception(MemoryError())
        return self.residency.poll()

    def finish_loads(self) -> None:
        for load in self.loader.loads:
            finish(load)
        self.loader.loads.clear()
        self.failures |= self.residency.poll()

    def pin(self, *digests: str) -> None:
        """Pin these, and let them come to the device."""
        self.residency.pin(digests)
        self.residency.poll()
        self.finish_fetches()
        self.finish_loads()

    def load(self, *digests: str) -> Lease | None:
        """A lease whose adapters are on the device, or None."""
        if not self.residency.prepare(parts(*digests)):
            self.finish_fetches()
        assert self.residency.prepare(parts(*digests))
        lease = self.residency.reserve(parts(*digests))
        self.finish_loads()
        return lease


def finish(load: Load) -> None:
    _, prepare, future = load
    future.set_result(prepare())


def parts(*digests: str) -> list[WeightedAdapter]:
    return [WeightedAdapter(digest, 0.5) for digest in digests]


@pytest.fixture
def device(make_blob: Callable[[int], Blob]) -> Device:
    return Device(make_blob)


def test_an_adapter_goes_from_disk_to_host_to_device(device: Device) -> None:
    residency = device.residency
    assert not residency.prepare(parts("a"))
    assert not residency.prepare(parts("a"))
    assert [digest for digest, _ in device.loader.fetches] == ["a"]
    assert residency.is_loading()
    device.finish_fetches()
    assert residency.prepare(parts("a"))
    lease = residency.reserve(parts("a"))
    assert lease is not None
    assert not residency.is_ready(lease)
    assert not device.backend.attached
    assert residency.is_loading()
    [([(data, start)], _, _)] = device.loader.loads
    assert data is device.blobs["a"].data
    device.finish_loads()
    assert residency.is_ready(lease)
    assert device.backend.attached == {lease.slots[0]: (start, device.blobs["a"].layout, {})}
    assert (lease.digests, lease.weights) == (("a",), (0.5,))
    assert (residency.digests(), residency.num_elements(), residency.num_loads) == (["a"], 8, 1)
    assert len(residency.load_seconds) == 1
    assert not residency.is_loading()


def test_the_base_needs_nothing(device: Device) -> None:
    assert device.residency.prepare([])
    lease = device.residency.reserve([])
    assert lease is not None
    assert device.residency.is_ready(lease)
    device.residency.release(lease)


def test_a_second_lease_shares_slot_and_copy(device: Device) -> None:
    first, second = device.load("a"), device.residency.reserve(parts("a"))
    assert first is not None
    assert second is not None
    assert first.slots == second.slots
    assert not device.loader.loads


def test_the_least_recently_used_goes_and_what_is_leased_stays(make_blob: Callable[[int], Blob]) -> None:
    device = Device(make_blob, capacity=100)
    leases = {digest: device.load(digest) for digest in "abc"}
    for digest in "bca":
        lease = leases[digest]
        assert lease is not None
        device.residency.release(lease)
    held = device.load("b")
    assert held is not None
    assert device.load("d") is not None
    assert device.residency.digests() == ["a", "b", "d"]  # by use: c, held longest ago, made room
    assert device.residency.num_evictions == 1


def test_nothing_is_taken_when_one_part_has_no_room(device: Device) -> None:
    held = device.load("d")
    assert held is not None
    assert device.load("a") is not None
    assert device.load("e", "c") is None
    device.residency.check_integrity()
    assert device.load("a", "e") is not None, "what was begun for the lease that failed must hold no slot"
    device.residency.release(held)
    assert device.load("c") is not None


def test_two_mixtures_never_wait_for_each_other(make_blob: Callable[[int], Blob]) -> None:
    """Each could hold half of the slots; instead one runs, then the other."""
    device = Device(make_blob, capacity=100, slots=2)
    for digests in (("a", "b"), ("c", "d")):
        assert not device.residency.prepare(parts(*digests))
    device.finish_fetches()
    first = device.load("a", "b")
    assert first is not None
    assert device.load("c", "d") is None
    assert device.load("b", "c") is None
    device.residency.release(first)
    assert device.load("c", "d") is not None


def test_a_copy_that_runs_is_not_evicted(make_blob: Callable[[int], Blob]) -> None:
    device = Device(make_blob, slots=1)
    assert not device.residency.prepare(parts("a"))
    device.finish_fetches()
    lease = device.residency.reserve(parts("a"))
    assert lease is not None
    device.residency.release(lease)
    assert device.load("b") is None
    assert device.load("b") is not None


def test_a_mixture_that_can_never_fit_is_said_to_fail(device: Device) -> None:
    """It would wait for ever, and others behind it."""
    device.residency.prepare(parts("d", "f"))
    device.finish_fetches()
    assert device.residency.reserve(parts("d", "f")) is None
    failures = device.residency.poll()
    assert list(failures) == [("d", "f")]
    assert isinstance(failures["d", "f"], AdapterTooLarge)
    assert not device.residency.poll()


def test_parts_of_a_mixture_do_not_lie_in_its_own_way(device: Device) -> None:
    """What is left of other times may split the space that all of it would fit in; nobody else would ever move it."""
    for digest in ("a", "d"):
        lease = device.load(digest)
        assert lease is not None
        device.residency.release(lease)
    assert device.load("c", "d") is None
    assert device.load("c", "d") is not None
    device.residency.check_integrity()


def test_a_mixture_that_only_has_to_wait_does_not_fail(device: Device) -> None:
    held = device.load("d")
    assert held is not None
    assert not device.residency.prepare(parts("f"))
    device.finish_fetches()
    assert device.residency.reserve(parts("f")) is None
    assert not device.residency.poll()


def test_a_failed_fetch_is_told_once_and_tried_again_when_asked(device: Device) -> None:
    device.residency.prepare(parts("a", "b"))
    error = InvalidAdapter("truncated")
    assert device.finish_fetches(error) == {("a",): error, ("b",): error}
    assert not device.residency.poll()
    assert not device.residency.is_loading()
    assert device.load("a") is not None


def test_dropping_waits_for_leases_and_loads_and_gives_all_back(device: Device) -> None:
    residency = device.residency
    residency.prepare(parts("a"))
    assert not residency.drop("a"), "its fetch runs"
    device.finish_fetches()
    residency.prepare(parts("a"))
    lease = residency.reserve(parts("a"))
    assert lease is not None
    assert not residency.drop("a"), "its copy runs"
    device.finish_loads()
    assert not residency.drop("a"), "it is leased"
    residency.release(lease)
    assert residency.drop("a")
    assert residency.drop("a")
    assert (residency.num_elements(), device.host.num_bytes, device.backend.attached) == (0, 0, {})
    assert not residency.prepare(parts("a"))


def test_what_a_waiting_mixture_needs_stays_on_the_host(make_blob: Callable[[int], Blob]) -> None:
    """Or fetching one part would drop the other, for ever."""
    device = Device(make_blob, host_bytes=10 * FLOAT)
    assert not device.residency.prepare(parts("a", "b"))
    (_, first), (_, second) = device.loader.fetches
    first.set_result(device.blobs["a"])
    device.residency.poll()
    assert not device.residency.prepare(parts("a", "b"))
    second.set_result(device.blobs["b"])
    device.residency.poll()
    assert device.residency.prepare(parts("a", "b"))
    assert device.residency.reserve(parts("a", "b")) is not None


def test_what_two_adapters_share_is_there_once(make_blob: Callable[[int], Blob]) -> None:
    device = Device(make_blob, shared=SHARED)
    first = device.load("a")
    assert first is not None
    assert device.residency.num_elements() == SIZES["a"] + 4
    second = device.load("b")
    assert second is not None
    assert device.residency.num_elements() == SIZES["a"] + SIZES["b"] + 4 + 8
    device.residency.release(first)
    assert device.residency.drop("a")
    assert device.residency.num_elements() == SIZES["b"] + 4 + 8
    device.residency.release(second)
    assert device.residency.drop("b")
    assert device.residency.num_elements() == 0
    device.residency.check_integrity()


def test_what_is_pinned_comes_by_itself_and_stays(make_blob: Callable[[int], Blob]) -> None:
    device = Device(make_blob, slots=2)
    device.pin("a")
    assert (device.residency.digests(), device.residency.is_loading()) == (["a"], False)
    for digest in "bcd":
        lease = device.load(digest)
        assert lease is not None
        assert device.residency.digests() == ["a", digest]
        device.residency.release(lease)
    device.residency.pin([])
    for digest in "bc":
        lease = device.load(digest)
        assert lease is not None
        device.residency.release(lease)
    assert device.residency.digests() == ["b", "c"]
    device.residency.check_integrity()


def test_what_is_pinned_lies_behind_the_room_of_others(device: Device) -> None:
    device.pin("a")
    for digest in "efe":
        lease = device.load(digest)
        assert lease is not None, "8 of 32 elements are pinned, and 24 are in one piece"
        device.residency.release(lease)
    assert "a" in device.residency.digests()


def test_what_was_there_before_it_was_pinned_moves_if_another_could_never_get_its_place(device: Device) -> None:
    held = [device.load("e"), device.load("a")]
    device.residency.pin(["a"])
    assert device.load("f") is None
    assert "a" in device.residency.digests(), "it is held"
    for lease in held:
        assert lease is not None
        device.residency.release(lease)
    assert device.load("f") is None
    device.finish_loads()
    assert device.load("f") is not None
    device.finish_loads()
    assert {*device.residency.digests()} == {"a", "f"}


def test_a_mixture_gets_its_turn_though_a_pinned_one_lies_in_its_way(device: Device) -> None:
    """Its own adapters, which come and go while it tries, are not all that could make way."""
    for digest in ("b", "c"):
        lease = device.load(digest)
        assert lease is not None
        device.residency.release(lease)
    device.pin("c")
    lease = next((lease for lease in (device.load("e", "d") for _ in range(MOST_TRIES)) if lease is not None), None)
    assert lease is not None
    device.finish_loads()
    assert {*device.residency.digests()} == {"c", "d", "e"}


def test_what_has_no_room_beside_pinned_ones_fails_and_moves_none(device: Device) -> None:
    device.pin("c")
    assert device.load("f") is None
    assert device.load("a", "b", "e") is None
    failures = device.failures
    assert [str(failures[key]) for key in (("f",), ("a", "b", "e"))] == [
        "this adapter needs more memory on the device than the 1 pinned ones leave of --adapter-memory",
        "together, the adapters of this mixture need 3 slots, and the 1 pinned ones leave 2 of --max-loras 3",
    ]
    assert device.residency.digests()[0] == "c"
    assert device.load("a", "c", "b") is not None, "what is pinned is part of the mixture"


def test_a_pinned_one_that_cannot_be_fetched_is_not_fetched_for_ever(device: Device) -> None:
    device.residency.pin(["a"])
    device.residency.poll()
    assert list(device.finish_fetches(InvalidAdapter("truncated"))) == [("a",)]
    device.residency.poll()
    assert not device.residency.is_loading()
    assert device.load("a") is not None
    assert device.residency.pinned == {"a"}


def test_one_is_brought_without_being_held(device: Device) -> None:
    assert not device.residency.bring("a")
    device.finish_fetches()
    assert not device.residency.bring("a")
    assert not device.residency.bring("a")
    device.finish_loads()
    assert device.residency.bring("a")
    assert device.load("f") is not None
    assert device.load("b") is not None
    assert not device.residency.bring("a")


class ResidencyMachine(RuleBasedStateMachine):
    """Any order of what the scheduler, the loader and the engine do."""

    leases = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.device = Device(
            lambda size: Blob(torch.zeros(size), AdapterLayout()),
            capacity=CAPACITY + SHARED_ELEMENTS,
            host_bytes=30 * FLOAT,
            shared=SHARED,
        )
        self.residency = self.device.residency
        self.held: list[Lease] = []
        self.failed: set[tuple[Lease, str]] = set()  # leases, and the key of each load that failed under them
        self.fewest_left, self.fewest_slots = CAPACITY, 3

    @rule(target=leases, digests=st.sampled_from(MIXTURES))
    def reserve(self, digests: tuple[str, ...]) -> Any:
        if not self.residency.prepare(parts(*digests)):
            return multiple()
        lease = self.residency.reserve(parts(*digests))
        if lease is None:
            return multiple()
        assert lease.digests == digests
        assert len(set(lease.slots)) == len(digests)
        self.held.append(lease)
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        self.residency.release(lease)
        self.held.remove(lease)

    @rule(fails=st.booleans())
    def finish_a_fetch(self, fails: bool) -> None:
        if self.device.loader.fetches:
            digest, future = self.device.loader.fetches.pop(0)
            future.set_exception(OSError()) if fails else future.set_result(self.device.blobs[digest])

    @rule(fails=st.booleans())
    def finish_a_load(self, fails: bool) -> None:
        if self.device.loader.loads:
            load = self.device.loader.loads.pop(0)
            load[2].set_exception(MemoryError()) if fails else finish(load)

    @rule()
    def poll(self) -> None:
        self.poll_and_note_failed_loads()

    @rule()
    def fail_a_load_and_begin_it_again(self) -> None:
        """All in one turn: the sequences that waited for it are ended, and their leases released, only after that."""
        self.finish_a_load(fails=True)
        for digest in self.poll_and_note_failed_loads():
            self.residency.bring(digest)

    def poll_and_note_failed_loads(self) -> list[str]:
        failures = self.residency.poll()
        assert all(len(failed) == 1 or not self.has_room(failed) for failed in failures)
        loads = [digest for (digest, *_), error in failures.items() if isinstance(error, MemoryError)]
        self.failed |= {(lease, digest) for lease in self.held for digest in lease.digests if digest in loads}
        return loads

    def holds(self, lease: Lease) -> set[str]:
        """Return which of its adapters a lease still holds: not what failed to load under it, loaded again or not."""
        return {digest for digest in lease.digests if (lease, digest) not in self.failed}

    @rule(keys=st.sets(st.sampled_from(list(SIZES)), max_size=2))
    def pin(self, keys: set[str]) -> None:
        if sum(SIZES[key] for key in keys) <= CAPACITY // 2:
            self.residency.pin(keys)
            self.fewest_left = min(self.fewest_left, CAPACITY - sum(SIZES[key] for key in keys))
            self.fewest_slots = min(self.fewest_slots, 3 - len(keys))

    def has_room(self, digests: tuple[str, ...]) -> bool:
        """Return whether they had at all times, whatever was pinned."""
        return sum(SIZES[digest] for digest in digests) <= self.fewest_left and len(digests) <= self.fewest_slots

    @rule(digest=st.sampled_from(list(SIZES)))
    def bring(self, digest: str) -> None:
        assert self.residency.bring(digest) == (digest in self.residency.digests())

    @rule(digest=st.sampled_from(list(SIZES)))
    def drop(self, digest: str) -> None:
        if self.residency.drop(digest):
            assert all(digest not in self.holds(lease) for lease in self.held)
            assert digest not in self.residency.digests()
            assert digest not in self.device.host

    @rule(digest=st.sampled_from(list(SIZES)))
    def keep(self, digest: str) -> None:
        self.residency.keep(digest, self.device.blobs[digest])

    @invariant()
    def books_agree(self) -> None:
        residents = self.residency._residents
        self.residency.check_integrity()
        holders = Counter(digest for lease in self.held for digest in self.holds(lease))
        assert {d: r.holders for d, r in residents.items() if r.holders} == holders
        attached = {residents[digest].slot: residents[digest].place.start for digest in self.residency.digests()}
        assert {slot: start for slot, (start, *_) in self.device.backend.attached.items()} == attached
        for lease in self.held:
            slots = dict(zip(lease.digests, lease.slots, strict=True))
            assert all(slots[digest] == residents[digest].slot for digest in self.holds(lease))
            ready = self.holds(lease) == {*lease.digests} and all(slot in attached for slot in lease.slots)
            assert self.residency.is_ready(lease) == ready

    def teardown(self) -> None:
        """Once nobody is in its way, every mixture gets its turn; and then everything comes back."""
        for lease in self.held:
            self.residency.release(lease)
        self.device.finish_fetches()
        self.device.finish_loads()
        for digests in filter(self.has_room, MIXTURES):
            self.take_turn(digests)
        self.residency.pin([])
        for digests in MIXTURES:
            self.take_turn(digests)
        assert all(self.residency.drop(digest) for digest in SIZES)
        assert (self.residency.num_elements(), self.device.host.num_bytes) == (0, 0)
        assert not self.device.backend.attached
        self.residency.check_integrity()

    def take_turn(self, digests: tuple[str, ...]) -> None:
        leases = (self.device.load(*digests) for _ in range(MOST_TRIES))
        lease = next((lease for lease in leases if lease is not None), None)
        assert lease is not None, "it waits for itself"
        self.residency.release(lease)
        self.device.finish_fetches()
        self.device.finish_loads()


TestResidency = ResidencyMachine.TestCase
TestResidency.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def test_an_adapter_that_cannot_be_attached_gives_its_place_back_and_may_come_again(
    make_blob: Callable[[int], Blob],
) -> None:
    device = Device(make_blob)
    device.pin("e")
    assert not device.residency.prepare([WeightedAdapter("a")])
    device.finish_fetches()
    lease = device.residency.reserve([WeightedAdapter("a")])
    assert lease is not None
    used = device.residency.num_elements()
    failures = device.fail_a_load()
    assert [*failures] == [("a",)]
    assert isinstance(failures[("a",)], MemoryError)
    assert device.residency.num_elements() < used
    device.residency.release(lease)
    device.residency.check_integrity()
    again = device.residency.reserve([WeightedAdapter("a")])
    assert again is not None
    device.finish_loads()
    assert device.residency.is_ready(again)
    device.residency.release(again)
    device.residency.check_integrity()


def test_a_load_that_failed_under_a_lease_leaves_the_next_one_its_own_holds(device: Device) -> None:
    """The one may begin before the sequence is ended that the other has failed."""
    residency = device.residency
    residency.prepare(parts("a"))
    device.finish_fetches()
    failed = residency.reserve(parts("a"))
    assert failed is not None
    device.fail_a_load()
    assert not residency.is_ready(failed)
    again = device.load("a")
    assert again is not None
    assert residency.is_ready(again)
    assert not residency.is_ready(failed), "its slot may be another's by now"
    residency.release(failed)
    residency.check_integrity()
    assert not residency.drop("a"), "it is leased"
    assert device.load("f") is None or "a" in residency.digests()
    residency.release(again)
    assert residency.drop("a")


def test_a_pinned_one_that_failed_comes_when_it_is_asked_for_and_not_when_another_is_pinned(device: Device) -> None:
    residency = device.residency
    device.residency.pin(["a"])
    device.residency.poll()
    device.finish_fetches()
    assert [*device.fail_a_load()] == [("a",)]
    device.pin("a", "b")
    assert residency.digests() == ["b"]
    assert not residency.is_loading()
    assert not residency.bring("a")
    device.finish_loads()
    assert {*residency.digests()} == {"a", "b"}
    residency.check_integrity()


def test_a_pinned_one_that_failed_and_is_asked_for_again_comes_as_soon_as_there_is_room(device: Device) -> None:
    residency = device.residency
    residency.pin(["f"])
    residency.poll()
    device.finish_fetches()
    device.fail_a_load()
    held = device.load("d")
    assert held is not None
    assert not residency.bring("f")
    assert not residency.is_loading()
    residency.release(held)
    residency.poll()
    device.finish_loads()
    assert residency.digests() == ["f"]
