"""Biases, bans and penalties against transformers' processors and the formulas in plain Python."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from peftserve.server.engine.sampling import SampleRow
from peftserve.server.engine.sampling.penalties import Edits, edit, edits, penalizes
from peftserve.server.engine.staging import to_device
from peftserve.server.wire.messages import SamplingParams

VOCAB = 23
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=30)


def row(
    params: SamplingParams, prompt: Sequence[int] = (), output: Sequence[int] = (), banned: Sequence[int] = ()
) -> SampleRow:
    return SampleRow(params, prompt, output, 0, banned)


def edited(logits: Tensor, rows: list[SampleRow]) -> Tensor:
    places = dict(enumerate(rows))
    penalized = {place: row for place, row in places.items() if penalizes(row.params)}
    host = edits(places, places, penalized, logits.shape[1])
    return edit(logits, Edits(*to_device(host, logits.device)))


def edited_by_hand(logits: list[float], row: SampleRow) -> list[float]:
    p, counts = row.params, Counter(row.output_token_ids)
    result = []
    for token, logit in enumerate(logits):
        logit += p.logit_bias.get(token, 0.0)
        if token in row.banned_token_ids:
            logit = -math.inf
        if token in counts or token in row.prompt_token_ids:
            logit = logit / p.repetition_penalty if logit > 0 else logit * p.repetition_penalty
        result.append(logit - p.frequency_penalty * counts[token] - p.presence_penalty * (token in counts))
    return result


SCALE = st.sampled_from([0.0, 0.5, -1.25, 2.0])
ROWS = st.builds(
    row,
    st.builds(
        SamplingParams,
        repetition_penalty=st.sampled_from([1.0, 1.3, 0.7]),
        presence_penalty=SCALE,
        frequency_penalty=SCALE,
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=5),
    ),
    TOKENS,
    TOKENS,
    TOKENS,
)


@settings(deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 100))
def test_every_row_gets_its_own_edits(rows: list[SampleRow], seed: int) -> None:
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(seed)) * 4
    expected = torch.tensor([edited_by_hand(line.tolist(), one) for line, one in zip(logits, rows, strict=True)])
    torch.testing.assert_close(edited(logits, rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("penalty", [1.2, 0.8])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    logits = torch.randn(1, VOCAB)
    prompt, output = [1, 5, 5, 7], [2, 5, 22, 2]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits.clone())
    assert torch.equal(edited(logits, [row(SamplingParams(repetition_penalty=penalty), prompt, output)]), expected)


def test_plain_rows_cost_nothing() -> None:
    logits = torch.randn(3, VOCAB, dtype=torch.bfloat16)
    assert edited(logits, [row(SamplingParams(), [1], [2])] * 3) is logits


def test_the_input_stays_and_plain_neighbours_too() -> None:
    logits = torch.randn(2, VOCAB)
    before = logits.clone()
    scores = edited(logits, [row(SamplingParams(logit_bias={3: 1.0})), row(SamplingParams())])
    assert torch.equal(logits, before)
    assert torch.equal(scores[1], before[1])


def test_tokens_that_do_not_exist_are_ignored() -> None:
    logits = torch.zeros(1, VOCAB)
    params = SamplingParams(logit_bias={VOCAB: 5.0, 1: 2.0, -1: 3.0}, repetition_penalty=2.0, presence_penalty=1.0)
    scores = edited(logits, [row(params, [VOCAB + 3], [VOCAB, 1], [VOCAB, -1, 2])])
    assert scores[0, 1] == 0.0
    assert scores[0, 2] == -math.inf
    assert scores[0].count_nonzero() == 1
