import pytest

from peftserve.kernels.bypass.triton.designs import Design, candidates, rows_apart, rows_in_tiles


def test_the_two_that_serve_everything_are_among_them() -> None:
    found = candidates()
    assert rows_apart() in found
    assert rows_in_tiles() in found
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("design", candidates(), ids=str)
def test_a_candidate_is_what_the_kernels_can_be_compiled_for(design: Design) -> None:
    """Powers of two, 16 rows and more for tensor cores, whole steps, and a loop only where something streams."""
    shrink, expand = design.shrink, design.expand
    sizes = (design.rows, shrink.ranks, shrink.part, shrink.step, shrink.warps, expand.ranks, expand.columns)
    assert all(size & (size - 1) == 0 for size in (*sizes, expand.walked, expand.warps))
    assert design.rows == 1 or design.rows >= 16
    assert shrink.part % shrink.step == 0
    assert shrink.ranks >= 16
    assert (shrink.stages > 1) == (shrink.part > shrink.step)
    assert (expand.stages > 1) == (expand.walked > 1)
    assert not design.beside
