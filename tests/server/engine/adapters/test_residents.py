from peftserve.server.engine.adapters.arena_places import ArenaPlace
from peftserve.server.engine.adapters.packing import AdapterLayout
from peftserve.server.engine.adapters.residents import Resident, Residents


def resident(key: str, slot: int = 0) -> Resident:
    return Resident(key, slot, ArenaPlace(0, 8, ()), AdapterLayout(), requested=1.0)


def test_what_is_used_last_is_last() -> None:
    residents = Residents({key: resident(key) for key in "abc"})
    held = residents.hold("a")
    assert [*residents] == ["b", "c", "a"]
    residents.hold("b")
    residents.let_go(held)
    assert [*residents] == ["c", "b", "a"]
    assert [one.holders for one in residents.values()] == [0, 1, 0]


def test_one_that_has_left_takes_its_holds_along() -> None:
    residents = Residents({key: resident(key) for key in "ab"})
    before = residents.hold("a")
    del residents["a"]
    residents["a"] = resident("a", slot=1)
    residents.move_to_end("b")
    residents.let_go(before)
    assert (before.holders, residents["a"].holders, [*residents]) == (0, 0, ["a", "b"])
