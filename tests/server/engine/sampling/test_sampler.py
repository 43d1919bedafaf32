"""The sampler as the engine uses it: greedy, draws, distributions, seeds, and rows that make no sense."""

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from peftserve.server.engine.sampling import PendingTokens, Sampled, Sampler, SampleRow, greedy, metadata
from peftserve.server.wire.messages import SamplingParams, TokenLogprobs

VOCAB = 40
SEATS = 4000
GREEDY = SamplingParams(temperature=0.0)


class SampledToken(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None


Start = Callable[[Sampler, Tensor, list[SampleRow]], PendingTokens]
Sample = Callable[[Tensor, list[SampleRow]], list[SampledToken]]


@pytest.fixture(scope="session")
def sample(device: str, start: Start) -> Sample:
    """Samples from logits on the CPU with a sampler on the device; checks that the logits stay as they are."""

    def sample_there(logits: Tensor, rows: list[SampleRow]) -> list[SampledToken]:
        there = logits.to(device, copy=True)
        tokens = tokens_of(start(Sampler(logits.shape[1], there.device, SEATS), there, rows).result())
        assert torch.equal(there.cpu().nan_to_num(7.0), logits.nan_to_num(7.0))
        return tokens

    return sample_there


def tokens_of(sampled: Sampled) -> list[SampledToken]:
    return [SampledToken(token_id, sampled.logprobs.get(place)) for place, token_id in enumerate(sampled.token_ids)]


def ids(tokens: list[SampledToken]) -> list[int]:
    return [token.token_id for token in tokens]


def row(params: SamplingParams, seed: int = 0, position: int = 0, banned: list[int] | None = None) -> SampleRow:
    return SampleRow(params, [1, 2, 3], [4] * position, seed, banned or [])


def draws(sample: Sample, logits: Tensor, params: SamplingParams, n: int) -> Tensor:
    """How often each token comes out over n rows of seeds 0 to n - 1."""
    tokens = sample(logits.expand(n, -1), [row(params, seed) for seed in range(n)])
    return torch.bincount(torch.tensor(ids(tokens)), minlength=logits.shape[0]).double()


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.6]),
    min_p=st.sampled_from([0.0, 0.05]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    logit_bias=st.sampled_from([{}, {7: 3.0}]),
    logprobs=st.sampled_from([None, 0, 2]),
)
ROWS = st.builds(row, PARAMS, st.integers(0, 2**64), st.integers(0, 9), st.lists(st.integers(0, VOCAB - 1), max_size=3))


@settings(deadline=None, max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=8), st.sampled_from([torch.float32, torch.bfloat16]), st.randoms())
def test_a_row_depends_on_nothing_else(
    sample: Sample, rows: list[SampleRow], dtype: torch.dtype, shuffler: random.Random
) -> None:
    logits = (torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(len(rows))) * 3).to(dtype)
    together = sample(logits, rows)
    assert together == [sample(logits[i : i + 1], [rows[i]])[0] for i in range(len(rows))]
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    assert sample(logits[order], [rows[i] for i in order]) == [together[i] for i in order]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=8), st.integers(0, 8), st.sampled_from([torch.float32, torch.bfloat16]))
def test_without_a_look_at_the_numbers_it_is_the_same(
    unseen: Callable[[], AbstractContextManager[None]],
    start: Start,
    rows: list[SampleRow],
    sound: int,
    dtype: torch.dtype,
) -> None:
    logits = (torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(len(rows))) * 3).to(dtype)
    logits[sound:, 3] = math.nan
    sampler = Sampler(VOCAB, logits.device, SEATS)
    expected = start(sampler, logits, rows).result()
    with unseen():
        sampling = start(sampler, logits, rows)
    assert sampling.result() == expected
    assert sampling.token_ids.tolist() == expected.token_ids


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_is_argmax_with_the_lowest_id_of_equals(sample: Sample, dtype: torch.dtype) -> None:
    logits = torch.randn(5, 70_000).to(dtype)  # more ids than 16 bits hold
    logits[2, [300, 66_000, 123]] = 50.0
    tokens = ids(sample(logits, [row(GREEDY)] * 5))
    assert tokens == logits.argmax(-1).tolist()
    assert tokens[2] == 123


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.7, top_k=6),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=1.4, top_k=12, top_p=0.7, min_p=0.02),
    ],
)
def test_draws_follow_the_distribution(sample: Sample, params: SamplingParams) -> None:
    n, logits = 4000, torch.randn(VOCAB, generator=torch.Generator().manual_seed(1)) * 1.5
    counts, expected = draws(sample, logits, params, n), expected_by_hand(logits, params) * n
    assert counts[expected == 0].sum() == 0
    alive = expected > 0
    chi_square = ((counts - expected)[alive] ** 2 / expected[alive]).sum().item()
    freedom = int(alive.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10


def expected_by_hand(logits: Tensor, params: SamplingParams) -> Tensor:
    weights = dict(enumerate(((logits.double() - logits.max()) / params.temperature).exp().tolist()))
    best = sorted(weights, key=weights.__getitem__, reverse=True)
    best = [t for t in best if weights[t] >= params.min_p * weights[best[0]]][: params.top_k or None]
    total, mass, nucleus = sum(weights[t] for t in best), 0.0, []
    for token in best:
        if mass >= params.top_p * total and nucleus:
            break
        nucleus.append(token)
        mass += weights[token]
    return torch.tensor([weights[t] / mass if t in nucleus else 0.0 for t in range(len(logits))], dtype=torch.float64)


def test_positions_of_one_seed_are_independent_draws(sample: Sample) -> None:
    logits = torch.zeros(1, 4).expand(2000, -1)
    drawn = torch.tensor(ids(sample(logits, [row(SamplingParams(), seed=11, position=i) for i in range(2000)])))
    pairs = torch.bincount(drawn[:-1] * 4 + drawn[1:], minlength=16).double()
    assert ((pairs - 125) ** 2 / 125).sum() < 45  # 15 degrees of freedom, 5 sigma


def test_a_token_without_probability_never_comes_out(sample: Sample) -> None:
    logits = torch.full((3000, 9), -math.inf)
    logits[:, [2, 6]] = 0.0
    tokens = sample(logits, [row(SamplingParams(), seed) for seed in range(3000)])
    assert set(ids(tokens)) == {2, 6}


@pytest.mark.parametrize("largest", [True, False])
def test_extreme_uniforms_stay_in_the_distribution(
    sample: Sample, monkeypatch: pytest.MonkeyPatch, largest: bool
) -> None:
    uniform = 1 - 2.0**-53 if largest else 0.0
    monkeypatch.setattr(metadata, "uniforms", lambda seeds, _: np.full(len(seeds), uniform))
    logits = torch.randn(200, 333) * 5
    logits[:, 0] = logits[:, -1] = -math.inf
    assert set(ids(sample(logits, [row(SamplingParams())] * 200))) == {331 if largest else 1}


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_k=3, top_p=0.5, min_p=0.1)])
def test_everything_banned_gives_the_most_likely_raw_token(sample: Sample, params: SamplingParams) -> None:
    logits = torch.randn(2, VOCAB)
    tokens = sample(logits, [row(params, banned=list(range(VOCAB))), row(GREEDY)])
    assert ids(tokens) == logits.argmax(-1).tolist()


NONSENSE = {
    "a NaN": (torch.tensor([0.0, math.nan, 3.0, 1.0]), True),
    "only NaNs": (torch.full((4,), math.nan), True),
    "an infinity": (torch.tensor([0.0, math.inf, 3.0, 1.0]), True),
    "nothing at all": (torch.full((4,), -math.inf), True),
    "what is never said": (torch.tensor([-math.inf, 2.0, -math.inf, 1.0]), False),
    "large numbers": (torch.tensor([3e38, -3e38, 1.0, 0.0]), False),
}


@pytest.mark.parametrize(("logits", "unsound"), NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hot", [False, True], ids=["greedy", "drawn"])
@pytest.mark.parametrize(
    "params", [{}, {"logit_bias": {3: 1.0}}, {"top_k": 2}, {"logprobs": 1}, {"frequency_penalty": 0.5}], ids=str
)
@pytest.mark.parametrize("seen", [True, False], ids=["host", "device"])
def test_rows_without_sound_logits_are_told_and_no_others(
    device: str,
    start: Start,
    unseen: Callable[[], AbstractContextManager[None]],
    logits: Tensor,
    unsound: bool,
    dtype: torch.dtype,
    hot: bool,
    params: dict[str, Any],
    seen: bool,
) -> None:
    rows = [row(SamplingParams(temperature=float(hot), **(params if i != 1 else {})), i) for i in range(3)]
    there = torch.stack([torch.randn(4), logits, torch.randn(4)]).to(device, dtype)
    with nullcontext() if seen else unseen():
        sampled = start(Sampler(4, there.device, SEATS), there, rows).result()
    assert sampled.unsound == ({1} if unsound else set())


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(top_k=3, top_p=0.5, min_p=0.1)])
def test_nonsense_in_one_row_touches_no_other(sample: Sample, params: SamplingParams) -> None:
    logits = torch.randn(5, VOCAB)
    rows = [row(params, seed) for seed in range(5)]
    sound = ids(sample(logits, rows))
    logits[1, 5], logits[1, 9] = math.nan, 100.0
    logits[2], logits[3, 7] = math.nan, math.inf
    assert ids(sample(logits, rows)) == [sound[0], 9, 0, 7, sound[4]]


def test_logprobs_are_of_the_raw_distribution(sample: Sample) -> None:
    logits = torch.randn(2, VOCAB, dtype=torch.bfloat16)
    params = SamplingParams(temperature=3.0, logit_bias={8: 100.0}, logprobs=2)
    first, second = sample(logits, [row(params), row(GREEDY)])
    raw = torch.log_softmax(logits[0].float(), -1)
    assert first.token_id == 8
    assert first.logprobs is not None
    assert first.logprobs.chosen.logprob == pytest.approx(raw[8].item(), abs=1e-6)
    assert first.logprobs.chosen.rank == 1 + int((raw > raw[8]).sum())
    assert first.logprobs.top[0].logprob == pytest.approx(raw.max().item(), abs=1e-6)
    assert second.logprobs is None


def test_an_empty_step(sample: Sample) -> None:
    assert sample(torch.zeros(0, VOCAB), []) == []


def test_the_same_sequences_go_on_with_what_was_worked_out_for_them(
    monkeypatch: pytest.MonkeyPatch, start: Start
) -> None:
    """Each step is what it would be by itself, and none but the first looks at the sequences."""
    mixed = [GREEDY, SamplingParams(temperature=0.7, top_k=5), SamplingParams(logprobs=1), SamplingParams(top_p=0.4)]
    rows = [row(params, seed=i, banned=[3]) for i, params in enumerate(mixed)]
    logits = torch.randn(6, len(rows), VOCAB)
    alone = []
    for position, step in enumerate(logits):
        moved = [SampleRow(r.params, r.prompt_token_ids, [4] * position, r.seed, [3]) for r in rows]
        alone.append(start(Sampler(VOCAB, step.device, SEATS), step, moved).result())
    sampler, seats = Sampler(VOCAB, logits.device, SEATS), np.array([5, 2, 9, 0])
    for seat, one in zip(seats, rows, strict=True):
        sampler.seat(seat, one)
    for position, step in enumerate(logits):
        assert sampler.start(step, sampler.prepare(seats, np.full(len(rows), position))).result() == alone[position]
        monkeypatch.setattr("peftserve.server.engine.sampling.table.Selection", None)


def test_a_seat_belongs_to_who_came_last() -> None:
    sampler, seats, logits = (
        Sampler(4, torch.device("cpu"), 2),
        np.array([0, 1]),
        torch.tensor([[0.0, 9.0, 1.0, 1.0]] * 2),
    )
    for banned, expected in (([], [1, 1]), ([1], [1, 2])):
        sampler.seat(0, row(GREEDY))
        sampler.seat(1, row(GREEDY, banned=banned))
        assert sampler.start(logits, sampler.prepare(seats, np.array([0, 0]))).result().token_ids == expected


def test_a_ban_ends_with_its_position() -> None:
    sampler, logits = Sampler(3, torch.device("cpu"), 1), torch.tensor([[0.0, 2.0, 9.0]])
    sampler.seat(0, SampleRow(GREEDY, [1] * 5, [], 0, banned_token_ids=[2], banned_before=2, num_before=5))
    steps = [sampler.start(logits, sampler.prepare(np.array([0]), np.array([5 + i]))) for i in range(4)]
    assert [step.result().token_ids for step in steps] == [[1], [1], [2], [2]]


@pytest.mark.parametrize("temperatures", [[0.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
def test_a_device_looks_for_the_best_token_of_a_row_once(
    monkeypatch: pytest.MonkeyPatch,
    unseen: Callable[[], AbstractContextManager[None]],
    start: Start,
    temperatures: list[float],
) -> None:
    looked = []
    best = greedy.argmax_ids
    monkeypatch.setattr(greedy, "argmax_ids", lambda logits: looked.append(len(logits)) or best(logits))
    monkeypatch.setattr(greedy, "take_best", lambda _: pytest.fail("a second look"))
    logits = torch.randn(2, VOCAB)
    with unseen():
        start(Sampler(VOCAB, logits.device, SEATS), logits, [row(SamplingParams(temperature=t)) for t in temperatures])
    assert looked == [2]
