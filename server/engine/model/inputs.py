"""What a step gives the model, sent to the device in one copy: token ids, positions, the rows that reach the head."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..scheduling.batch import Span
from ..scheduling.sequence import UNKNOWN
from ..scheduling.sequence import Sequence as EngineSequence
from ..staging import to_device

Ints = NDArray[np.int64]


class Feed(NamedTuple):
    """The tokens that the step before has sampled, which the host may not know yet.

    token_ids: (rows,) int64 on the device. rows: of each sequence.
    """

    token_ids: torch.Tensor
    rows: Mapping[EngineSequence, int]


class StepInputs(NamedTuple):
    """ids, positions: (tokens,) int64 on the device. logit_rows: (rows,) those that reach the head; None for all."""

    ids: torch.Tensor
    positions: torch.Tensor
    logit_rows: torch.Tensor | None


def step_inputs(spans: Sequence[Span], offsets: Sequence[int], feed: Feed | None, device: torch.device) -> StepInputs:
    """offsets: where each span's rows begin, and the end of the last."""
    tokens = chain.from_iterable(span.sequence.tokens[span.start : span.end] for span in spans)
    ids = np.fromiter(tokens, np.int64, offsets[-1])
    positions = ranges([span.start for span in spans], [span.num_tokens for span in spans])
    kept = [span.num_logit_rows for span in spans]
    logit_rows = ranges([end - n for end, n in zip(offsets[1:], kept, strict=True)], kept)
    targets, sources = _fed(spans, offsets, feed)
    ids[targets] = 0
    there = to_device([[ids, positions, logit_rows, targets, sources]], device)[0]
    if feed is not None and len(targets):
        there[0].index_copy_(0, there[3], feed.token_ids.index_select(0, there[4]))
    return StepInputs(there[0], there[1], None if len(logit_rows) == len(ids) else there[2])


def ranges(starts: Sequence[int], lengths: Sequence[int]) -> Ints:
    """[start, start + length) of all pairs, one after the other."""
    counts = np.asarray(lengths, np.int64)
    ends = counts.cumsum()
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(np.asarray(starts, np.int64) - (ends - counts), counts)


def _fed(spans: Sequence[Span], offsets: Sequence[int], feed: Feed | None) -> tuple[Ints, Ints]:
    """The rows whose tokens are not known here, and where among the fed ones they are."""
    pairs = [
        (end - 1, feed.rows[span.sequence])
        for span, end in zip(spans, offsets[1:], strict=True)
        if feed is not None and span.sequence.tokens[span.end - 1] == UNKNOWN
    ]
    targets, sources = np.array(pairs, np.int64).reshape(-1, 2).T
    return np.ascontiguousarray(targets), np.ascontiguousarray(sources)
