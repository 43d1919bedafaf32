"""One token for each row of a step's logits, each row by its own parameters, all rows together.

scores = penalties(logits); greedy: argmax; otherwise: truncate(softmax(scores / temperature)), inverse CDF

Nothing waits for the device before `Sampling.result`: what the host knows goes over in one copy, what the device knows
never decides what is enqueued, and all that is to be told comes back in one copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...wire.messages import TokenLogprobs
from .. import staging
from .draw import draw
from .greedy import take_best, take_best_number
from .logprobs import Scores, reports, score
from .parameters import Parameters
from .penalties import edit
from .rows import SampledToken, SampleRow
from .truncation import truncated_probabilities


class Sampling:
    """A step's tokens, which the device may still be choosing.

    token_ids: (rows,) int64 on the device.
    """

    def __init__(self, token_ids: Tensor, reported: Sequence[int], tops: Sequence[int], scores: Sequence[Tensor]):
        """reported: the rows that want logprobs; tops: how many alternatives each; scores: theirs, if any."""
        self.token_ids = token_ids
        self._reported = reported
        self._tops = tops
        self._returning = staging.Returning((token_ids, *scores))

    def result(self) -> list[SampledToken]:
        """Waits for the tokens, and for nothing that was enqueued after them."""
        token_ids, *scores = self._returning.result()
        tokens = [SampledToken(token_id, None) for token_id in token_ids.tolist()]
        if self._reported:
            chosen = [tokens[i].token_id for i in self._reported]
            for i, top, report in zip(self._reported, self._tops, reports(chosen, Scores(*scores)), strict=True):
                tokens[i] = SampledToken(tokens[i].token_id, TokenLogprobs(report.chosen, report.top[:top]))
        return tokens


class Sampler:
    """Holds nothing of any sequence: the token of a row depends on its logits and its `SampleRow` alone."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device

    def sample(self, logits: Tensor, rows: Sequence[SampleRow]) -> list[SampledToken]:
        """The same as `start`, and waits."""
        return self.start(logits, rows).result()

    def start(self, logits: Tensor, rows: Sequence[SampleRow]) -> Sampling:
        """logits: (rows, vocab or more, where an adapter brings more tokens) of any floating dtype on the device; left
        as they are.

        A row whose logits hold a NaN or an infinity, or whose every token is banned, gets the most likely token of
        its raw logits, NaNs aside: the step must go on for the others, and a sequence needs some token to end with.
        """
        fits = logits.shape[0] == len(rows) and logits.shape[1] >= self.vocab_size
        assert fits, f"logits {tuple(logits.shape)} for {len(rows)} rows"
        parameters = Parameters(rows, logits.shape[1], self.device)
        token_ids = _choose(logits, parameters)
        reported = parameters.reported
        scores = score(reported.of(logits), reported.of(token_ids), max(parameters.tops)) if reported else ()
        return Sampling(token_ids, reported.rows, parameters.tops, scores)


def _choose(logits: Tensor, parameters: Parameters) -> Tensor:
    scores = edit(logits, parameters.edits)
    drawn = parameters.drawn
    if drawn.has_all and drawn:
        known, token_ids = _draw(scores, parameters)
    else:
        token_ids = take_best(scores)
        known = scores.gather(1, token_ids[:, None]).squeeze(1).to(torch.float64)
        if drawn:
            for tensor, values in zip((known, token_ids), _draw(drawn.of(scores), parameters), strict=True):
                drawn.put(tensor, values)
    sound = known.isfinite()
    if staging.is_host(logits.device) and bool(sound.all()):
        return token_ids
    return torch.where(sound, token_ids, take_best_number(logits))


def _draw(scores: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    heated = scores.to(torch.float32) / parameters.temperature[:, None]
    return draw(truncated_probabilities(heated, parameters.cuts), parameters.uniform)
