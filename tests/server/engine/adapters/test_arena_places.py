"""Places of adapters with pieces in common: taken as a whole or not at all."""

from dataclasses import replace
from typing import Any

import torch

from peftserve.server.engine.adapters.arena_places import ArenaPlaces
from peftserve.server.engine.adapters.packing import SharedPiece
from peftserve.server.engine.adapters.ranges import RangeAllocator


def test_a_place_is_taken_as_a_whole_or_not_at_all(make_blob: Any) -> None:
    places = ArenaPlaces(RangeAllocator(32, 4))
    piece, other = SharedPiece("x", torch.zeros(8)), SharedPiece("y", torch.zeros(8))
    one, two = replace(make_blob(6), shared=(piece,)), replace(make_blob(8), shared=(piece, other))
    room = lambda size: places.allocate(size, at_end=False)  # noqa: E731
    first = places.put(one, room)
    assert first is not None
    place, copies = first
    assert [data.numel() for data, _ in copies] == [8, 6]
    assert (places.size([one, two]), places.size([place, two]), places.num_used) == (32, 32, 16)
    assert places.put(replace(two, data=torch.zeros(12)), room) is None
    assert places.num_used == 16
    second = places.put(two, room)
    assert second is not None
    assert [data.numel() for data, _ in second[1]] == [8, 8], "x is there"
    assert {*places.starts(second[0])} == {"x", "y"}
    places.check_integrity([place, second[0]])
    places.free(place)
    places.check_integrity([second[0]])
    assert places.widest_gap([]) == 32
    assert places.widest_gap([second[0]]) == 32 - 24
    places.free(second[0])
    assert places.num_used == 0
