"""Min-p, top-k and top-p against transformers' warpers and the definition in plain Python."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from peftserve.server.engine.sampling import nucleus
from peftserve.server.engine.sampling.truncation import Cuts, cuts, truncated_probabilities
from peftserve.server.engine.staging import to_device
from peftserve.server.wire.messages import SamplingParams

VOCAB = 700
IDS = torch.zeros(1, 0, dtype=torch.int64)
PARAMS = st.builds(
    SamplingParams,
    top_k=st.sampled_from([0, 0, 1, 7, 64, 699, 5000]),
    top_p=st.sampled_from([1.0, 1.0, 0.0, 0.1, 0.5, 0.93, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
)


def distinct_scores(rows: int, seed: int, spread: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, VOCAB, generator=generator) * spread


def probabilities_of(scores: Tensor, params: list[SamplingParams]) -> Tensor:
    columns = zip(*((p.min_p, p.top_k, p.top_p) for p in params), strict=True)
    types = (np.float32, np.int64, np.float64)
    host = cuts(*(np.array(column, dtype) for column, dtype in zip(columns, types, strict=True)))
    return truncated_probabilities(scores, Cuts(*to_device(host, scores.device), max(p.top_k for p in params)))


def by_transformers(scores: Tensor, params: SamplingParams) -> Tensor:
    if params.min_p > 0:
        scores = MinPLogitsWarper(params.min_p)(IDS, scores)
    if params.top_k > 0:
        scores = TopKLogitsWarper(params.top_k)(IDS, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(max(params.top_p, 0.0))(IDS, scores)
    return scores.softmax(dim=-1)


@settings(deadline=None, max_examples=60)
@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 1000), st.sampled_from([0.5, 2.0, 8.0]))
def test_equals_transformers_row_by_row(params: list[SamplingParams], seed: int, spread: float) -> None:
    scores = distinct_scores(len(params), seed, spread)
    expected = torch.cat([by_transformers(scores[i : i + 1].clone(), p) for i, p in enumerate(params)])
    probabilities = probabilities_of(scores.clone(), params)
    probabilities /= probabilities.sum(dim=-1, keepdim=True)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-7)


@settings(deadline=None, max_examples=40)
@given(st.lists(PARAMS, min_size=2, max_size=5), st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_neighbours(params: list[SamplingParams], seed: int) -> None:
    scores = distinct_scores(len(params), seed).bfloat16().float()  # ties
    together = probabilities_of(scores.clone(), params)
    alone = torch.cat([probabilities_of(scores[i : i + 1].clone(), [p]) for i, p in enumerate(params)])
    assert torch.equal(together, alone)


def test_equals_at_the_threshold_stay_together() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 2.0, 0.0]])
    kept = [1, 2, 3, 4]
    for params in (SamplingParams(top_k=2), SamplingParams(top_p=0.6)):
        assert probabilities_of(scores.clone(), [params])[0].nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("top_p", [0.3, 0.99])
def test_a_nucleus_larger_than_the_guess(monkeypatch: pytest.MonkeyPatch, top_p: float) -> None:
    scores, params = distinct_scores(2, 0, 0.1), [SamplingParams(top_p=top_p), SamplingParams(top_p=1.0)]
    expected = probabilities_of(scores.clone(), params)
    monkeypatch.setattr(nucleus, "_GUESSES", (16,))
    assert torch.equal(probabilities_of(scores.clone(), params), expected)
    assert expected[0].count_nonzero() > 16
    assert expected[1].all()
