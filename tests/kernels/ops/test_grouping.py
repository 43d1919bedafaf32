"""Which parts of a phase are one step."""

from peftserve.kernels.ops.grouping import ALONE, How, PartClass, PartGroup, grouped

TURN, OTHER = PartClass(How.BATCH, "turn"), PartClass(How.BATCH, "other")
SCALE, KERNEL = PartClass(How.ROWS, 8), PartClass(How.LAUNCH, "turn")


def test_parts_of_a_class_are_one_step() -> None:
    spans = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    assert grouped(spans, [TURN, SCALE, TURN, OTHER, ALONE], 256) == [
        PartGroup(How.BATCH, (0, 2)),
        PartGroup(How.ROWS, (1,)),
        PartGroup(How.ALONE, (3,)),  # nothing to be batched with
        PartGroup(How.ALONE, (4,)),
    ]


def test_parts_that_share_rows_run_in_turns_but_in_a_kernel() -> None:
    spans = [(0, 2), (0, 2), (2, 3)]
    assert grouped(spans, [TURN] * 3, 256) == [PartGroup(How.BATCH, (0, 2)), PartGroup(How.BATCH, (1,))]
    assert grouped(spans, [KERNEL] * 3, 256) == [PartGroup(How.LAUNCH, (0, 1, 2))]


def test_rows_of_a_step_are_bounded() -> None:
    spans = [(row, row + 1) for row in range(5)]
    assert [group.members for group in grouped(spans, [TURN] * 5, 2)] == [(0, 1), (2, 3), (4,)]
