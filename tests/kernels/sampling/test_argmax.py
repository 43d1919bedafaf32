"""The argmax of each row: plain torch against Python, and the kernel against plain torch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peftserve.kernels.sampling.argmax import argmax_ids, naive_argmax_ids, warm_up
from peftserve.kernels.sampling.triton_argmax import BLOCK, triton_argmax_ids

NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.5, -2.0, 3.0])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def by_hand(row: list[float]) -> int:
    numbers = [-math.inf if math.isnan(number) else number for number in row]
    return numbers.index(max(numbers))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9).flatmap(lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1)))
def test_the_first_of_the_highest_numbers(device: str, rows: list[list[float]]) -> None:
    there = torch.tensor(rows, device=device)
    expected = [by_hand(row) for row in rows]
    highest = torch.tensor([math.nan if any(map(math.isnan, row)) else max(row) for row in rows])
    for find in (naive_argmax_ids, argmax_ids, triton_argmax_ids):
        best = find(there)
        assert best.ids.tolist() == expected
        assert torch.equal(best.highest.cpu().nan_to_num(7.0), highest.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [63, BLOCK, BLOCK + 1, 3 * BLOCK + 60])
def test_the_kernel_at_any_width(device: str, dtype: torch.dtype, columns: int) -> None:
    rows = torch.randn(7, columns, generator=torch.Generator().manual_seed(columns)).to(device, dtype)
    rows[1], rows[2] = math.nan, -math.inf
    rows[3, [columns // 2, columns - 1]] = 50.0  # equals, in two blocks
    rows[4, 0] = math.nan
    rows[5, columns - 1] = math.inf
    ids, highest = triton_argmax_ids(rows)
    assert (ids.dtype, highest.dtype) == (torch.int64, torch.float32)
    assert ids.tolist() == naive_argmax_ids(rows).ids.tolist()
    assert torch.equal(highest.nan_to_num(7.0), naive_argmax_ids(rows).highest.nan_to_num(7.0))
    assert ids[[1, 2, 3, 5]].tolist() == [0, 0, columns // 2, columns - 1]


def test_rows_that_do_not_follow_each_other(device: str) -> None:
    wide = torch.randn(4, 100, device=device)
    for rows in (wide[:, :63], wide.T):
        assert torch.equal(triton_argmax_ids(rows).ids, naive_argmax_ids(rows).ids)
    assert [found.tolist() for found in triton_argmax_ids(wide[:0])] == [[], []]


def test_warming_up_leaves_nothing_to_compile(device: str) -> None:
    warm_up(torch.device(device), DTYPES, 64)
    assert argmax_ids(torch.eye(5, device=device)).ids.tolist() == [0, 1, 2, 3, 4]
