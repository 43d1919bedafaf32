from dataclasses import replace
from math import ceil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftserve.kernels.bypass.triton.tuning import Phase, Row, Tuning, best_split, defaults, load, save

FEW_ROWS, MANY_ROWS, _ = defaults()

MEASURED = replace(FEW_ROWS, block_n=128, warps=4)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [Row(Phase.DECODE, 16, 64, 4096, MEASURED)]
    path = save("NVIDIA H100 80GB HBM3", rows, {"torch": "2.11"}, tmp_path)
    assert path.name == "NVIDIA_H100_80GB_HBM3.json"
    tuning = load("NVIDIA H100 80GB HBM3", defaults(), tmp_path)
    assert tuning.blocks(16, 64, 4096) == MEASURED
    assert tuning.all_blocks() == [MEASURED, FEW_ROWS, MANY_ROWS]


def test_a_device_without_a_table_goes_by_formula(tmp_path: Path) -> None:
    tuning = load("some other device", defaults(4, 8), tmp_path)
    few_rows, many_rows, invariant = defaults(4, 8)
    assert tuning.blocks(64, 8, 4096) == few_rows
    assert tuning.blocks(65, 8, 4096) == many_rows
    assert tuning.all_blocks() == [few_rows, many_rows]
    assert tuning.invariant == invariant


def test_the_narrowest_row_that_covers_the_step_wins() -> None:
    wide, narrow = replace(MEASURED, stages=3), replace(MEASURED, stages=4)
    tuning = Tuning([Row(Phase.DECODE, 64, 512, 1 << 20, wide), Row(Phase.DECODE, 16, 64, 4096, narrow)])
    assert tuning.blocks(3, 0, 100) == narrow
    assert tuning.blocks(3, 65, 100) == wide
    assert tuning.blocks(17, 8, 100) == wide
    assert tuning.blocks(3, 8, 14336) == wide
    assert tuning.blocks(3, 600, 100) == FEW_ROWS
    assert tuning.blocks(1000, 8, 100) == MANY_ROWS


@pytest.mark.parametrize(
    ("units", "programs", "width", "split"),
    [
        (1, 264, 4096, 16),  # a block of features for each
        (192, 264, 4096, 4),  # three rounds of four blocks, rather than one of sixteen
        (264, 264, 4096, 1),
        (5000, 264, 4096, 1),
        (1, 264, 14336, 14),  # four blocks each: no part is empty
        (1, 264, 300, 2),
        (3, 1, 4096, 1),
        (0, 4, 10, 1),
    ],
)
def test_the_features_are_split_until_the_programs_are_busy(units: int, programs: int, width: int, split: int) -> None:
    assert best_split(FEW_ROWS, units, programs, width) == split


@given(units=st.integers(0, 3000), programs=st.integers(1, 600), width=st.integers(1, 40_000))
def test_no_part_of_the_features_is_empty(units: int, programs: int, width: int) -> None:
    split = best_split(FEW_ROWS, units, programs, width)
    chunk = ceil(ceil(width / split) / FEW_ROWS.block_k) * FEW_ROWS.block_k
    assert 1 <= split <= FEW_ROWS.max_split
    assert (split - 1) * chunk < width <= split * chunk
