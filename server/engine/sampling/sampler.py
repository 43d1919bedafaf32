"""One token for each row of a step's logits, each row by its own parameters, all rows together.

scores = penalties(logits); greedy: argmax; otherwise: truncate(softmax(scores / temperature)), inverse CDF

Nothing waits for the device before `Sampling.result`: what is known before the launch goes over with it, what moves
single logits in a copy of its own, what the device knows never decides what is enqueued, and all that is to be told
comes back in one copy.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from peftserve.kernels.sampling import argmax

from ...wire.messages import TokenLogprobs
from .. import staging
from .draw import draw
from .greedy import best_numbers, take_best
from .logprobs import Scores, reports, score
from .parameters import Append, Parameters
from .penalties import edit
from .rows import Sampled, SampleRow
from .table import SamplingTable
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

    def result(self) -> Sampled:
        """Waits for the tokens, and for nothing that was enqueued after them."""
        there, *scores = self._returning.result()
        token_ids: list[int] = there.tolist()
        if not self._reported:
            return Sampled(token_ids, {})
        found = reports([token_ids[i] for i in self._reported], Scores(*scores))
        ranked = zip(self._reported, self._tops, found, strict=True)
        return Sampled(token_ids, {i: TokenLogprobs(report.chosen, report.top[:top]) for i, top, report in ranked})


class Sampler:
    """The token of a row depends on its logits, its `SampleRow` and its position alone.

    num_seats: sequences that run at once, each of which has a seat for as long as it does.
    """

    def __init__(self, vocab_size: int, device: torch.device, num_seats: int) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._table = SamplingTable(num_seats)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what a device needs for logits of this type, so that no step waits for it."""
        argmax.warm_up(self.device, {dtype, torch.float32}, self.vocab_size)

    def seat(self, seat: int, row: SampleRow) -> None:
        """Sample whoever is on this seat so, from now on."""
        self._table.seat(seat, row)

    def prepare(self, seats: NDArray[np.int64], ends: NDArray[np.int64], append: Append | None = None) -> Parameters:
        """Tell the device how a step is sampled. Looks at no row where the same array of seats comes again.

        ends: (rows,) tokens of the sequence on each of the seats, with those before its output. append: to what the
        step is sent in; without it, this is sent by itself.
        """
        return Parameters(self._table.select(seats), ends, self.device, append)

    def start(self, logits: Tensor, parameters: Parameters) -> Sampling:
        """logits: (rows, vocab or more, where an adapter brings more tokens) of any floating dtype on the device; left
        as they are.

        A row whose logits hold a NaN or an infinity, or whose every token is banned, gets the most likely token of
        its raw logits, NaNs aside: the step must go on for the others, and a sequence needs some token to end with.
        """
        fits = logits.shape[0] == parameters.num_rows and logits.shape[1] >= self.vocab_size
        assert fits, f"logits {tuple(logits.shape)} for {parameters.num_rows} rows"
        token_ids = _choose(logits, parameters)
        reported = parameters.reported
        scores = score(reported.of(logits), reported.of(token_ids), max(parameters.tops)) if reported else ()
        return Sampling(token_ids, reported.rows.tolist(), parameters.tops, scores)


def _choose(logits: Tensor, parameters: Parameters) -> Tensor:
    scores, drawn = edit(logits, parameters.edits(logits.shape[1])), parameters.drawn
    if scores is logits and not (drawn and drawn.has_all):
        return _choose_unedited(logits, parameters)
    if drawn and drawn.has_all:
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
    return torch.where(sound, token_ids, best_numbers(logits))


def _choose_unedited(logits: Tensor, parameters: Parameters) -> Tensor:
    """Where some are greedy: what these get is what the others get whose numbers make no sense."""
    token_ids, drawn = best_numbers(logits), parameters.drawn
    if drawn:
        total, token = _draw(drawn.of(logits), parameters)
        drawn.put(token_ids, torch.where(total.isfinite(), token, drawn.of(token_ids)))
    return token_ids


def _draw(scores: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    heated = scores.to(torch.float32) / parameters.temperature[:, None]
    return draw(truncated_probabilities(heated, parameters.cuts), parameters.uniform)
