"""All that the host knows of a step's rows, on the device after one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..staging import Arrays, to_device
from .penalties import Edits, edits
from .randomness import uniforms
from .rows import SampleRow
from .truncation import Cuts, cuts

_GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: the quotient would overflow before the draw could differ."""


class Parameters:
    """Of the sampler for some rows; the tensors are on the device.

    edits: of all rows. drawn: the rows that are not greedy; of them, in order, temperature (n,) float32, uniform (n,)
    float64 and cuts. reported: the rows that want logprobs, with as many alternatives as `tops` says.
    """

    def __init__(self, rows: Sequence[SampleRow], width: int, device: torch.device) -> None:
        """width: of the logits."""
        drawn = [i for i, row in enumerate(rows) if row.params.temperature >= _GREEDY_BELOW]
        reported = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
        members = [rows[i] for i in drawn]
        params = [row.params for row in members]
        host: list[Arrays] = [
            *edits(rows, width),
            *cuts(params),
            [np.array([p.temperature for p in params], np.float32), _uniforms(members)],
            [np.array(drawn, np.int64), np.array(reported, np.int64)],
        ]
        biases, bans, penalties, min_p, top_k, top_p, points, [drawn_at, reported_at] = to_device(host, device)
        self.edits = Edits(biases, bans, penalties)
        self.cuts = Cuts(min_p, top_k, top_p, max((p.top_k for p in params), default=0))
        self.temperature, self.uniform = points
        self.drawn = RowSet(drawn, drawn_at, len(rows))
        self.reported = RowSet(reported, reported_at, len(rows))
        self.tops = [rows[i].params.logprobs or 0 for i in reported]


def _uniforms(rows: Sequence[SampleRow]) -> NDArray[np.float64]:
    return uniforms([row.seed for row in rows], [len(row.output_token_ids) for row in rows])


class RowSet:
    """Some rows of a step, in order."""

    def __init__(self, rows: list[int], index: Tensor, num_rows: int) -> None:
        """rows: on the host; index: the same on the device; num_rows: of the whole step."""
        self.rows = rows
        self.has_all = len(rows) == num_rows
        self._index = index

    def __bool__(self) -> bool:
        return bool(self.rows)

    def of(self, tensor: Tensor) -> Tensor:
        """The rows of a tensor, itself if they are all of it."""
        return tensor if self.has_all else tensor.index_select(0, self._index)

    def put(self, tensor: Tensor, values: Tensor) -> None:
        """Overwrite the rows of a tensor."""
        tensor.index_copy_(0, self._index, values)
