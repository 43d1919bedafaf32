"""One token for each row of a step's logits, each row by its own parameters, all rows together.

scores = penalties(logits); greedy: argmax; otherwise: truncate(softmax(scores / temperature)), inverse CDF

Nothing waits for the device before `PendingTokens.result`: what is known before the launch goes over with it, edits of
single logits go over in a copy of their own, no decision on the host looks at a tensor, and all results come back in
one copy.
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
from .metadata import Append, SamplingMetadata
from .penalties import edit
from .rows import Sampled, SampleRow
from .table import SamplingTable
from .truncation import truncated_probabilities


class PendingTokens:
    """A step's tokens, which the device may still be choosing.

    token_ids: (rows,) int64 on the device.
    """

    def __init__(self, token_ids: Tensor, reported: Sequence[int], tops: Sequence[int], scores: Sequence[Tensor]):
        """Begin to copy the results to the host.

        reported: the rows that want logprobs. tops: how many alternatives each wants. scores: theirs, if any.
        """
        self.token_ids = token_ids
        self._reported = reported
        self._tops = tops
        self._returning = staging.Returning((token_ids, *scores))

    def result(self) -> Sampled:
        """Wait for the tokens, and for nothing that was enqueued after them, and return them."""
        there, *scores = self._returning.result()
        token_ids: list[int] = there.tolist()
        if not self._reported:
            return Sampled(token_ids, {})
        found = reports([token_ids[i] for i in self._reported], Scores(*scores))
        ranked = zip(self._reported, self._tops, found, strict=True)
        return Sampled(token_ids, {i: TokenLogprobs(report.chosen, report.top[:top]) for i, top, report in ranked})


class Sampler:
    """Chooses tokens. That of a row depends on its logits, its `SampleRow` and its position alone.

    num_seats: how many sequences may run at once. Each has one seat for as long as it runs.
    """

    def __init__(self, vocab_size: int, device: torch.device, num_seats: int) -> None:
        self.vocab_size = vocab_size
        self.device = device
        self._table = SamplingTable(num_seats)

    def warm_up(self, dtype: torch.dtype) -> None:
        """Compile what a device needs for logits of this type, so that no step waits for it."""
        argmax.warm_up(self.device, {dtype, torch.float32}, self.vocab_size)

    def seat(self, seat: int, row: SampleRow) -> None:
        """Set how the sequence on a seat is sampled from now on."""
        self._table.seat(seat, row)

    def prepare(
        self, seats: NDArray[np.int64], ends: NDArray[np.int64], append: Append | None = None
    ) -> SamplingMetadata:
        """Tell the device how a step is sampled. It costs nothing by row when the same array of seats comes again.

        seats: (rows,) of the step's sequences. ends: (rows,) number of tokens of each, with those before its output.
        append: to the memory that is sent with the step; without it, this is sent by itself.
        """
        return SamplingMetadata(self._table.select(seats), ends, self.device, append)

    def start(self, logits: Tensor, metadata: SamplingMetadata) -> PendingTokens:
        """Enqueue the choice of a step's tokens.

        logits: (rows, vocab or more, where an adapter brings more tokens) of any floating dtype on the device; left
        as they are.

        A row whose logits hold a NaN or an infinity, or whose every token is banned, gets the most likely token of
        its raw logits, NaNs aside: the step must go on for the others, and a sequence needs some token to end with.
        """
        fits = logits.shape[0] == metadata.num_rows and logits.shape[1] >= self.vocab_size
        assert fits, f"logits {tuple(logits.shape)} for {metadata.num_rows} rows"
        token_ids = _choose(logits, metadata)
        reported = metadata.reported
        scores = score(reported.of(logits), reported.of(token_ids), max(metadata.tops)) if reported else ()
        return PendingTokens(token_ids, reported.rows.tolist(), metadata.tops, scores)


def _choose(logits: Tensor, metadata: SamplingMetadata) -> Tensor:
    scores, drawn = edit(logits, metadata.edits(logits.shape[1])), metadata.drawn
    if scores is logits and not (drawn and drawn.has_all):
        return _choose_unedited(logits, metadata)
    if drawn and drawn.has_all:
        known, token_ids = _draw(scores, metadata)
    else:
        token_ids = take_best(scores)
        known = scores.gather(1, token_ids[:, None]).squeeze(1).to(torch.float64)
        if drawn:
            for tensor, values in zip((known, token_ids), _draw(drawn.of(scores), metadata), strict=True):
                drawn.put(tensor, values)
    sound = known.isfinite()
    if staging.is_host(logits.device) and bool(sound.all()):
        return token_ids
    return torch.where(sound, token_ids, best_numbers(logits))


def _choose_unedited(logits: Tensor, metadata: SamplingMetadata) -> Tensor:
    """Choose tokens of unedited logits, some greedily: a row without a distribution gets the greedy token as well."""
    token_ids, drawn = best_numbers(logits), metadata.drawn
    if drawn:
        total, token = _draw(drawn.of(logits), metadata)
        drawn.put(token_ids, torch.where(total.isfinite(), token, drawn.of(token_ids)))
    return token_ids


def _draw(scores: Tensor, metadata: SamplingMetadata) -> tuple[Tensor, Tensor]:
    heated = scores.to(torch.float32) / metadata.temperature[:, None]
    return draw(truncated_probabilities(heated, metadata.cuts), metadata.uniform)
