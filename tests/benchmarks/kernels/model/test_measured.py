import pytest

from benchmarks.kernels.model.measured import EXPERIMENT, PEERS, device_of, halves, read, shares
from peftserve.kernels.bypass.triton.model import Share


def test_ranks_in_turn_are_as_many_adapters_of_each() -> None:
    assert shares(64, 16, "16") == [Share(16, 4, 16)]
    assert shares(64, 16, "8-64") == [Share(rank, 4, 4) for rank in (8, 16, 32, 64)]


@pytest.mark.parametrize("name", [EXPERIMENT, PEERS])
def test_steps_have_what_the_tables_say(name: str) -> None:
    table = read(name)
    assert table["software"].startswith("torch 2.11.0")
    assert 2.5e12 < device_of(table).bandwidth < 5e12
    for step in table["steps"]:
        assert sum(share.rows * share.adapters for share in shares(step["tokens"], step["adapters"], step["ranks"]))
        assert 0 < step["floor"] < step["sglang"]


def test_launches_are_of_designs_that_spill_nothing() -> None:
    found = halves(read())
    assert {point.half for point in found} == {"shrink", "expand", "expand_by_ranks"}
    assert len(found) > 400
    assert all(point.design.rows != 4 and point.us > 5 for point in found)
