"""Which segments of a stage are one call."""

from peftserve.kernels.ops.grouping import ALONE, CallForm, SegmentClass, SegmentGroup, grouped

TURN, OTHER = SegmentClass(CallForm.BATCH, "turn"), SegmentClass(CallForm.BATCH, "other")
SCALE, KERNEL = SegmentClass(CallForm.ROWS, 8), SegmentClass(CallForm.LAUNCH, "turn")


def test_segments_of_a_class_are_one_step() -> None:
    ranges = [(0, 2), (2, 4), (4, 6), (6, 8), (8, 9)]
    assert grouped(ranges, [TURN, SCALE, TURN, OTHER, ALONE], 256) == [
        SegmentGroup(CallForm.BATCH, (0, 2)),
        SegmentGroup(CallForm.ROWS, (1,)),
        SegmentGroup(CallForm.ALONE, (3,)),  # nothing to be batched with
        SegmentGroup(CallForm.ALONE, (4,)),
    ]


def test_segments_that_share_rows_run_in_turns_but_in_a_kernel() -> None:
    ranges = [(0, 2), (0, 2), (2, 3)]
    assert grouped(ranges, [TURN] * 3, 256) == [
        SegmentGroup(CallForm.BATCH, (0, 2)),
        SegmentGroup(CallForm.BATCH, (1,)),
    ]
    assert grouped(ranges, [KERNEL] * 3, 256) == [SegmentGroup(CallForm.LAUNCH, (0, 1, 2))]


def test_rows_of_a_step_are_bounded() -> None:
    ranges = [(row, row + 1) for row in range(5)]
    assert [group.members for group in grouped(ranges, [TURN] * 5, 2)] == [(0, 1), (2, 3), (4,)]
