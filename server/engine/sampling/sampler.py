"""One token for each row of a step's logits, each row by its own parameters, all rows together.

scores = penalties(mask(logits)); greedy: argmax; otherwise: truncate(softmax(scores / temperature)), inverse CDF

Nothing waits for the device before `PendingTokens.result`: what is known before the launch goes over with it, edits of
single logits go over in a copy of their own, no decision on the host looks at a tensor, and all results come back in
one copy.
"""

from collections.abc import Sequence
from typing import NamedTuple

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
from .masks import Masks, mask
from .metadata import Append, SamplingMetadata
from .penalties import edit
from .rows import Sampled, SampleRow
from .table import SamplingTable
from .truncation import truncated_probabilities


class PendingTokens:
    """A step's tokens, which the device may still be choosing.

    token_ids: (rows,) int64 on the device.
    """

    def __init__(self, chosen: "_Chosen", reported: Sequence[int], tops: Sequence[int], scores: Sequence[Tensor]):
        """Begin to copy the results to the host.

        reported: the rows that want logprobs. tops: how many alternatives each wants. scores: theirs, if any.
        """
        self.token_ids = chosen.token_ids
        self._reported = reported
        self._tops = tops
        self._returning = staging.Returning((*chosen, *scores))

    def result(self) -> Sampled:
        """Wait for the tokens, and for nothing that was enqueued after them, and return them."""
        there, sound, *scores = self._returning.result()
        token_ids: list[int] = there.tolist()
        unsound = frozenset(np.flatnonzero(~sound.numpy()).tolist())
        if not self._reported:
            return Sampled(token_ids, {}, unsound)
        found = reports([token_ids[i] for i in self._reported], Scores(*scores))
        ranked = zip(self._reported, self._tops, found, strict=True)
        logprobs = {i: TokenLogprobs(report.chosen, report.top[:top]) for i, top, report in ranked}
        return Sampled(token_ids, logprobs, unsound)


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

        A row whose every token is banned gets the most likely token of its raw logits; where its output has a form, it
        is the most likely one of those that may come. So does a row whose logits hold a NaN or an infinity above all,
        which is also reported as unsound: the step must go on for the others.
        """
        fits = logits.shape[0] == metadata.num_rows and logits.shape[1] >= self.vocab_size
        assert fits, f"logits {tuple(logits.shape)} for {metadata.num_rows} rows"
        chosen = _choose(logits, metadata)
        reported = metadata.reported
        scores = score(reported.of(logits), reported.of(chosen.token_ids), max(metadata.tops)) if reported else ()
        return PendingTokens(chosen, reported.rows.tolist(), metadata.tops, scores)


class _Chosen(NamedTuple):
    """The choice of a step. token_ids: (rows,) int64. sound: (rows,) bool, whether there was anything to choose by."""

    token_ids: Tensor
    sound: Tensor


def _choose(logits: Tensor, metadata: SamplingMetadata) -> _Chosen:
    masks = metadata.masks(logits.shape[1])
    if masks is not None:
        logits = mask(logits, masks)
    scores, drawn = edit(logits, metadata.edits(logits.shape[1])), metadata.drawn
    if scores is logits and not (drawn and drawn.has_all):
        return _choose_unedited(logits, metadata, masks)
    if drawn and drawn.has_all:
        known, token_ids = _draw(scores, metadata)
    else:
        token_ids = take_best(scores)
        known = scores.gather(1, token_ids[:, None]).squeeze(1).to(torch.float64)
        if drawn:
            for tensor, values in zip((known, token_ids), _draw(drawn.of(scores), metadata), strict=True):
                drawn.put(tensor, values)
    has_token = known.isfinite()
    if staging.is_host(logits.device) and bool(has_token.all()):
        return _Chosen(token_ids, has_token)
    best = best_numbers(logits)
    return _Chosen(torch.where(has_token, token_ids, best.ids), has_token | _is_sound(best.highest, masks))


def _choose_unedited(logits: Tensor, metadata: SamplingMetadata, masks: Masks | None) -> _Chosen:
    """Choose tokens of unedited logits, some greedily: a row without a distribution gets the greedy token as well."""
    (token_ids, highest), drawn = best_numbers(logits), metadata.drawn
    if drawn:
        total, token = _draw(drawn.of(logits), metadata)
        drawn.put(token_ids, torch.where(total.isfinite(), token, drawn.of(token_ids)))
    return _Chosen(token_ids, _is_sound(highest, masks))


def _is_sound(highest: Tensor, masks: Masks | None) -> Tensor:
    """Return whether rows have a token to choose. A mask may leave none but those that the model never says."""
    return highest.isfinite() if masks is None else highest < torch.inf


def _draw(scores: Tensor, metadata: SamplingMetadata) -> tuple[Tensor, Tensor]:
    heated = scores.to(torch.float32) / metadata.temperature[:, None]
    return draw(truncated_probabilities(heated, metadata.cuts), metadata.uniform)
