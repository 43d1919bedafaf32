"""Reported log-probabilities: values, ranks, order of equals, and what JSON can hold."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from peftserve.server.engine.sampling import PendingTokens, Sampler, SampleRow, logprobs, start_prompt_logprobs
from peftserve.server.engine.sampling.logprobs import LOWEST
from peftserve.server.wire.messages import SamplingParams, TokenLogprobs


def prompt_logprobs(logits: Tensor, next_token_ids: list[int], top: int) -> list[TokenLogprobs]:
    return start_prompt_logprobs(logits, next_token_ids, top).result()


def test_values_ranks_and_order() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    (report,) = prompt_logprobs(logits, [2], 3)
    expected = torch.log_softmax(logits, -1)[0]
    assert (report.chosen.token_id, report.chosen.rank) == (2, 3)
    assert report.chosen.logprob == pytest.approx(expected[2].item(), abs=1e-6)
    assert [(t.token_id, t.rank) for t in report.top] == [(1, 1), (3, 2), (2, 3)]
    assert [t.logprob for t in report.top] == pytest.approx(expected[[1, 3, 2]].tolist(), abs=1e-6)


def test_equals_share_a_rank_and_come_by_lowest_id() -> None:
    logits = torch.zeros(1, 1000, dtype=torch.bfloat16)
    logits[0, 500] = 1
    (report,) = prompt_logprobs(logits, [999], 4)
    assert [(t.token_id, t.rank) for t in report.top] == [(500, 1), (0, 2), (1, 2), (2, 2)]
    assert report.chosen.rank == 2


def test_many_rows_are_reported_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, ids = torch.randn(11, 50), list(range(11))
    expected = prompt_logprobs(logits, ids, 2)
    monkeypatch.setattr(logprobs, "_CHUNK", 3)
    assert prompt_logprobs(logits, ids, 2) == expected
    assert [r.chosen.token_id for r in expected] == ids
    assert prompt_logprobs(logits[:0], [], 2) == []


def test_each_row_gets_as_many_as_it_asks_for(start: Callable[..., PendingTokens]) -> None:
    logits = torch.randn(4, 30)
    wanted = [None, 0, 3, 50]
    rows = [SampleRow(SamplingParams(temperature=0.0, logprobs=top), [], [], 0) for top in wanted]
    sampled = start(Sampler(30, logits.device, len(rows)), logits, rows).result()
    assert [*sampled.logprobs] == [1, 2, 3]
    for (place, report), count in zip(sampled.logprobs.items(), [0, 3, 30], strict=True):
        (expected,) = prompt_logprobs(logits[place][None], [sampled.token_ids[place]], count)
        assert report == expected
        assert len(expected.top) == count


def test_no_infinity_is_reported() -> None:
    (report,) = prompt_logprobs(torch.tensor([[0.0, -math.inf, -math.inf]]), [1], 2)
    assert report.chosen.logprob == LOWEST
    assert [t.logprob for t in report.top] == [0.0, LOWEST]


@pytest.mark.parametrize("row", [[math.nan] * 3, [-math.inf] * 3, [0.0, math.nan, 1.0], [0.0, math.inf, 1.0]])
def test_nothing_is_reported_of_what_is_no_distribution(row: list[float]) -> None:
    assert start_prompt_logprobs(torch.tensor([[0.0, 1.0, 2.0], row]), [1, 1], 2).result() is None
