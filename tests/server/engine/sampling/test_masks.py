"""Masks of the vocabulary, beside a loop over tokens: on the host, and as on a device."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from peftserve.server.engine import staging
from peftserve.server.engine.sampling import PendingTokens, Sampler, SampleRow
from peftserve.server.engine.sampling.masks import Masks, mask, masks
from peftserve.server.wire.messages import SamplingParams

Where = Callable[[], AbstractContextManager[None]]
LEAST = torch.finfo(torch.float32).min


class Allowing:
    """A form by which only some tokens may come, of which a narrower mask has fewer."""

    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    def fill(self, mask: NDArray[np.int32]) -> None:
        bits = mask.view(np.uint32)
        for token in self.tokens:
            if token < 32 * len(bits):
                bits[token // 32] |= np.uint32(1 << token % 32)


@pytest.fixture(params=["host", "device"])
def where(request: pytest.FixtureRequest, unseen: Where) -> Where:
    return unseen if request.param == "device" else nullcontext


def row(*tokens: int, seed: int = 0, **params: object) -> SampleRow:
    held = SamplingParams(**{"temperature": 0.0, **params})  # type: ignore[arg-type]
    return SampleRow(held, [1, 2], [], seed, form=Allowing(*tokens) if tokens else None)


def masked(logits: Tensor, formed: dict[int, SampleRow], where: Where) -> Tensor:
    with where():
        [rest] = staging.to_device([masks(formed, logits.shape[1])], logits.device)
        return mask(logits, Masks(*rest))


@pytest.mark.parametrize("width", [1, 31, 32, 33, 63, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_what_may_come_is_left(where: Where, width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    logits = torch.randn(4, width, generator=generator, dtype=dtype)
    before = logits.clone()
    chosen = {place: [t for t in range(width) if (t * 7 + place) % 3 == 0] or [0] for place in (3, 1)}
    out = masked(logits, {place: row(*tokens) for place, tokens in chosen.items()}, where)
    for place in range(4):
        allowed = chosen.get(place, range(width))
        expected = [v if t in allowed else -math.inf for t, v in enumerate(before[place].tolist())]
        assert out[place].tolist() == expected, place
    assert out.dtype == dtype
    assert torch.equal(logits, before)


def test_what_is_no_number_leaves_a_best_token_that_may_come(where: Where) -> None:
    logits = torch.full((4, 40), math.nan)
    logits[1], logits[2] = -math.inf, 0.0
    logits[2, 35] = math.inf
    out = masked(logits, {0: row(37), 1: row(38, 39), 2: row(3, 35)}, where)
    assert out[0, 37] == out[1, 38] == out[1, 39] == LEAST
    assert out[2, 35] == torch.finfo(torch.float32).max
    assert [int(torch.isfinite(line).sum()) for line in out] == [1, 2, 2, 0]
    assert bool(out[3].isnan().all())


def test_rows_without_a_form_have_no_mask() -> None:
    assert masks({}, 40) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e6])
def test_the_sampler_chooses_what_may_come_and_leaves_the_neighbours(
    where: Where, start: Callable[..., PendingTokens], temperature: float
) -> None:
    """All but one token masked, logits wider than the vocabulary, a bias against the mask, and a row of NaNs."""
    logits = torch.randn(6, 77, generator=torch.Generator().manual_seed(1))
    logits[4] = math.nan
    free = [row(seed=seed, temperature=temperature) for seed in range(6)]
    biased = row(76, temperature=temperature, logit_bias={5: 100.0})
    held = [free[0], row(9, temperature=temperature), free[2], biased, row(64, 3), free[5]]
    sampler = Sampler(60, logits.device, 6)
    plain = start(sampler, logits, free).result().token_ids
    with where():
        tokens = start(Sampler(60, logits.device, 6), logits, held).result().token_ids
    assert tokens == [plain[0], 9, plain[2], 76, 3, plain[5]]
