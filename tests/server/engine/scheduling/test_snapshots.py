"""Which slots hold snapshots, without any."""

from hypothesis import given
from hypothesis import strategies as st

from peftserve.server.engine.scheduling.snapshots import Snapshots

KEYS = st.integers(0, 5).map(lambda number: bytes([number]))


def test_the_least_recently_used_one_gives_up_its_slot() -> None:
    snapshots = Snapshots([7, 8])
    slots = {key: snapshots.take(key) for key in (b"a", b"b")}
    assert sorted(slots.values()) == [7, 8]  # type: ignore[type-var]
    assert snapshots.take(b"c") is None, "both are being written"
    for key in slots:
        snapshots.keep(key)
    assert snapshots.use(b"a") == slots[b"a"]
    assert snapshots.take(b"c") == slots[b"b"]
    assert b"b" not in snapshots
    assert b"c" not in snapshots, "not before its copy is under way"


def test_without_slots_there_is_none() -> None:
    snapshots = Snapshots()
    assert not snapshots
    assert snapshots.take(b"a") is None


@given(st.integers(0, 3), st.lists(st.tuples(st.sampled_from(["take", "keep", "drop", "use", "clear"]), KEYS)))
def test_no_slot_is_lost_or_doubled(slots: int, calls: list[tuple[str, bytes]]) -> None:
    snapshots, saving = Snapshots(range(10, 10 + slots)), set[bytes]()
    for what, key in calls:
        if what == "take" and snapshots.take(key) is not None:
            saving.add(key)
        elif what == "keep" and key in saving:
            snapshots.keep(key)
            saving.discard(key)
            assert key in snapshots
        elif what == "drop":
            snapshots.drop(key)
            assert key not in snapshots
        elif what == "use" and key in snapshots:
            snapshots.use(key)
        elif what == "clear":
            snapshots.clear()
            saving.clear()
        snapshots.check_integrity()
        assert len(snapshots) + len(saving) <= slots
