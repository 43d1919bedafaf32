"""One token for each row of a step's logits, each row by its own parameters, all rows together.

scores = penalties(logits); greedy: argmax; otherwise: truncate(softmax(scores / temperature)), inverse CDF
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...wire.messages import SamplingParams
from .logprobs import sampled_logprobs
from .penalties import edit
from .randomness import uniforms
from .rows import SampledToken, SampleRow
from .truncation import truncated_probabilities

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: the quotient would overflow before the draw could differ."""


class Sampler:
    """Holds nothing of any sequence: the token of a row depends on its logits and its `SampleRow` alone."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """logits: (rows, vocab or more, where an adapter brings more tokens) of any floating dtype on the device; left
        as they are.

        A row whose logits hold a NaN or an infinity, or whose every token is banned, gets the most likely token of
        its raw logits, NaNs aside: the step must go on for the others, and a sequence needs some token to end with.
        """
        fits = logits.shape[0] == len(rows) and logits.shape[1] >= self.vocab_size
        assert fits, f"logits {tuple(logits.shape)} for {len(rows)} rows"
        if not rows:
            return []
        token_ids = self._choose(logits, rows)
        logprobs = sampled_logprobs(logits, token_ids, [row.params.logprobs for row in rows])
        return [SampledToken(*pair) for pair in zip(token_ids, logprobs, strict=True)]

    def _choose(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[int]:
        scores = edit(logits, rows)
        drawn = [i for i, row in enumerate(rows) if row.params.temperature >= _GREEDY_BELOW]
        if len(drawn) == len(rows):
            chosen = self._draw(scores, rows)
        else:
            chosen = _take_best(scores)
            if drawn:
                chosen[:, drawn] = self._draw(scores[drawn], [rows[i] for i in drawn])
        evidence, token_ids = chosen.tolist()
        return [
            int(token_id) if math.isfinite(known) else _best_finite(logits[i])
            for i, (known, token_id) in enumerate(zip(evidence, token_ids, strict=True))
        ]

    def _draw(self, scores: Tensor, rows: Sequence[SampleRow]) -> Tensor:
        """(2, rows) float64: the total probability, not finite where there is no distribution; and the token.

        Tokens are laid along [0, total) in the order of their ids, and each row's uniform number falls on one. A token
        of probability 0 has no length there. Sums are float64, so that no device's order of summing shows.
        """
        params = [row.params for row in rows]
        probabilities = truncated_probabilities(self._heated(scores, params), params)
        ends = probabilities.cumsum(dim=-1, dtype=torch.float64)
        total = ends[:, -1]
        uniform = uniforms([row.seed for row in rows], [len(row.output_token_ids) for row in rows])
        # A uniform is at most 1 - 2^-53, for which the product rounds below the total: some end lies beyond it.
        point = torch.from_numpy(uniform).to(self.device) * total
        token_ids = torch.searchsorted(ends, point[:, None], right=True).squeeze(1)
        return torch.stack((total, token_ids.to(torch.float64)))

    def _heated(self, scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
        """A float32 copy of the scores, divided by each row's temperature."""
        temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32)
        return scores.to(torch.float32) / temperature.to(self.device)[:, None]


def _take_best(scores: Tensor) -> Tensor:
    """(2, rows) float64: the highest score, NaN if there is any; and its token, the lowest id of equals."""
    token_ids = scores.argmax(dim=-1, keepdim=True)
    known = scores.gather(1, token_ids)
    return torch.stack((known.to(torch.float64), token_ids.to(torch.float64))).squeeze(2)


def _best_finite(logits: Tensor) -> int:
    return int(logits.nan_to_num(nan=-torch.inf).argmax())
