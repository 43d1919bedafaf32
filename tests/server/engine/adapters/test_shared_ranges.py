"""Pieces that several adapters have are counted, and freed with the last of them."""

import torch

from peftserve.server.engine.adapters.packing import SharedPiece
from peftserve.server.engine.adapters.ranges import RangeAllocator
from peftserve.server.engine.adapters.shared_ranges import SharedRanges


def test_a_piece_lives_as_long_as_anybody_has_it() -> None:
    ranges = RangeAllocator(64, 8)
    shared = SharedRanges(ranges)
    start = ranges.allocate(10)
    assert start is not None
    shared.put(SharedPiece("x", torch.zeros(10)), start)
    shared.hold("x")
    assert ("x" in shared, shared.size("x"), dict(shared.starts(["x"]))) == (True, 16, {"x": start})
    shared.release(["x"])
    assert shared.holders() == {"x": 1}
    shared.release(["x"])
    assert "x" not in shared
    assert ranges.num_used == 0
