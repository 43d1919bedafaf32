"""Log-probabilities to report: of the model's raw distribution, before any bias, penalty or temperature."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...wire.messages import Logprob, TokenLogprobs

LOWEST = -9999.0
"""Reported for a probability of 0 and for a NaN, as OpenAI does: JSON has neither infinity nor NaN."""

_CHUNK = 64
"""Rows handled at once: bounds the float32 copies of a long prompt's logits."""


def prompt_logprobs(logits: Tensor, next_token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Report on `next_token_ids` under the rows of logits (n, vocab) that predict them, with `top` alternatives each.

    Ranks are 1 plus the number of strictly likelier tokens. Alternatives come best first, equals by lowest id.
    """
    reports: list[TokenLogprobs] = []
    for start in range(0, len(next_token_ids), _CHUNK):
        ids = next_token_ids[start : start + _CHUNK]
        reports += _report(logits[start : start + _CHUNK], ids, min(top, logits.shape[1]))
    return reports


def sampled_logprobs(
    logits: Tensor, token_ids: Sequence[int], tops: Sequence[int | None]
) -> list[TokenLogprobs | None]:
    """The same for a step's sampled tokens, where each row asks for its own number of alternatives or for None."""
    reports: list[TokenLogprobs | None] = [None] * len(token_ids)
    asking = [(i, top) for i, top in enumerate(tops) if top is not None]
    if not asking:
        return reports
    picked = logits if len(asking) == len(tops) else logits[[i for i, _ in asking]]
    found = prompt_logprobs(picked, [token_ids[i] for i, _ in asking], max(top for _, top in asking))
    for (i, top), report in zip(asking, found, strict=True):
        reports[i] = TokenLogprobs(report.chosen, report.top[:top])
    return reports


def _report(logits: Tensor, token_ids: Sequence[int], top: int) -> list[TokenLogprobs]:
    logprobs = torch.log_softmax(logits, dim=-1, dtype=torch.float32).nan_to_num_(LOWEST, neginf=LOWEST)
    chosen = logprobs.gather(1, torch.tensor(token_ids).to(logits.device)[:, None])
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    best = _best_ids(logprobs, top)
    columns = (token_ids, chosen.squeeze(1).tolist(), ranks.tolist(), best.tolist(), logprobs.gather(1, best).tolist())
    return [
        TokenLogprobs(Logprob(token_id, logprob, rank), _ranked(ids, values))
        for token_id, logprob, rank, ids, values in zip(*columns, strict=True)
    ]


def _best_ids(logprobs: Tensor, top: int) -> Tensor:
    """(rows, top) ids of the most likely tokens, equals by lowest id, which torch's own topk leaves open.

    Packs an order-preserving integer image of the value above the complement of the id, so that all keys differ.
    """
    bits = logprobs.view(torch.int32).to(torch.int64)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    complement = torch.arange(logprobs.shape[1] - 1, -1, -1, device=logprobs.device)
    keys = ((ordered << 32) + complement).topk(top).values
    return logprobs.shape[1] - 1 - (keys & 0xFFFFFFFF)


def _ranked(ids: list[int], values: list[float]) -> list[Logprob]:
    """Equal values share the rank of the first of them."""
    ranked: list[Logprob] = []
    for place, (token_id, value) in enumerate(zip(ids, values, strict=True), 1):
        tied = bool(ranked) and ranked[-1].logprob == value
        ranked.append(Logprob(token_id, value, ranked[-1].rank if tied else place))
    return ranked
