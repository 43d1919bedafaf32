"""The smallest primitive that holds a delta."""

import pytest
import torch

from peftserve.adapters.errors import InvalidAdapter
from peftserve.adapters.peft.base import NamedTensor
from peftserve.adapters.peft.compact import compacted, factored
from peftserve.adapters.primitives import Dense, LowRank, Sparse

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.mark.parametrize("shape", [(63, 40), (40, 63), (50, 50)])
@pytest.mark.parametrize("bound", [3, 5, 12])
def test_factors_have_the_rank_that_the_delta_has(shape: tuple[int, int], bound: int) -> None:
    w = random(shape[0], 3) @ random(3, shape[1])
    primitive = compacted(NamedTensor("w", w), bound, torch.float32)
    assert isinstance(primitive, LowRank)
    assert primitive.rank == 3
    torch.testing.assert_close(primitive.b @ primitive.a, w, rtol=1e-5, atol=1e-5)


def test_a_rank_over_the_bound_is_not_cut() -> None:
    w = random(40, 6) @ random(6, 40)
    assert factored(w, 5) is None
    assert isinstance(compacted(NamedTensor("w", w), 5, torch.float32), Dense)


def test_factors_that_are_larger_than_the_delta_are_not_made() -> None:
    w = random(40, 40)
    primitive = compacted(NamedTensor("w", w), 40, torch.float32)
    assert isinstance(primitive, Dense)
    assert torch.equal(primitive.w, w)


def test_few_non_zeros_are_kept_by_row() -> None:
    w = torch.zeros(40, 30)
    w[[7, 3, 39, 3], [2, 29, 0, 1]] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    primitive = compacted(NamedTensor("w", w), None, torch.bfloat16)
    assert isinstance(primitive, Sparse)
    assert primitive.starts.tolist() == [0] * 4 + [2] * 4 + [3] * 32 + [4]
    assert primitive.columns.tolist() == [1, 29, 2, 0]
    assert primitive.values.tolist() == [4.0, 2.0, 1.0, 3.0]
    assert primitive.values.dtype is torch.bfloat16


def test_a_delta_of_nothing_has_rank_one() -> None:
    primitive = compacted(NamedTensor("w", torch.zeros(4, 5)), None, torch.float16)
    assert isinstance(primitive, LowRank)
    assert (primitive.a.shape, primitive.b.shape) == ((1, 5), (4, 1))
    assert not primitive.a.any()
    assert not primitive.b.any()


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "NaN or infinity"), (1e6, "too large for float16")])
def test_what_is_not_finite_is_refused(value: float, message: str) -> None:
    with pytest.raises(InvalidAdapter, match=message):
        compacted(NamedTensor("w", torch.full((4, 4), value)), None, torch.float16)
