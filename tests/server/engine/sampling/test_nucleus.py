"""The end of the nucleus: found digit by digit as by sorting."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftserve.server.engine.sampling.nucleus import _floors_by_digits, _floors_by_sorting

VOCAB = 700
TOP_P = st.one_of(st.sampled_from([0.0, 0.5, 0.9, 0.999999]), st.floats(0.0, 0.999999))


def probabilities_of(rows: int, seed: int, spread: float, dtype: torch.dtype) -> Tensor:
    scores = torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    scores[:, ::7] = -torch.inf
    return scores.to(dtype).float().softmax(dim=-1)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(TOP_P, min_size=1, max_size=5),
    st.integers(0, 1000),
    st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_digit_by_digit_it_is_the_same(top_p: list[float], seed: int, spread: float, dtype: torch.dtype) -> None:
    probabilities = probabilities_of(len(top_p), seed, spread, dtype)
    masses = torch.tensor(top_p, dtype=torch.float64)
    expected = torch.from_numpy(_floors_by_sorting(probabilities.numpy(), masses.numpy()))
    assert torch.equal(_floors_by_digits(probabilities, masses), expected)


def test_a_row_of_nans_has_some_floor() -> None:
    assert _floors_by_digits(torch.full((3, VOCAB), torch.nan), torch.tensor([0.0, 0.5, 1.0]).double()).isfinite().all()
