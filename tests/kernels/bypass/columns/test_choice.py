from peftserve.kernels.bypass.columns.choice import SHARE, choose
from peftserve.kernels.bypass.layout import Segment

NEEDS = {0: {0: 16, 1: 8}, 1: {0: 16}, 2: {0: 40, 1: 40}, 3: {1: 8}}


def chosen(
    *segments: tuple[int, int, int], columns: int = 64, least: int = 8, reading: frozenset[int] = frozenset()
) -> list[int]:
    return choose([Segment(slot, 1.0, start, end) for slot, start, end in segments], NEEDS, reading, columns, least)


def test_those_with_most_rows_come_first_while_there_is_room() -> None:
    assert chosen((0, 0, 10), (1, 10, 40), (3, 40, 50)) == [1, 0, 3]
    assert chosen((0, 0, 10), (2, 10, 40), (3, 40, 60), columns=48) == [2, 3], "0 has no room beside 2"
    assert chosen((0, 0, 10), (2, 10, 40), columns=32) == [0], "2 has no room at all"
    assert chosen() == []


def test_rows_of_a_slot_count_together() -> None:
    assert chosen((0, 0, 5), (1, 5, 12), (0, 12, 17)) == [0]


def test_few_rows_of_a_long_step_are_not_worth_a_wider_product() -> None:
    rows = 100 * SHARE
    assert chosen((0, 0, 99), (1, 99, rows)) == [1]
    assert chosen((0, 0, 100), (1, 100, rows)) == [1, 0]


def test_slots_that_are_unknown_go_another_way() -> None:
    assert chosen((7, 0, 30), (1, 30, 60)) == [1]


def test_nothing_is_added_before_outputs_that_are_still_to_be_scaled() -> None:
    mixed = ((0, 0, 20), (7, 10, 30), (1, 30, 50))
    assert chosen(*mixed) == [0, 1]
    assert chosen(*mixed, reading=frozenset({7})) == [1]
