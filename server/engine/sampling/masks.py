"""Masks of tokens that may come next, for rows whose output has a form.

A mask is applied before all else, so that no bias brings back what it takes away. Rows without one lose nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import staging
from ..staging import Arrays
from .rows import SampleRow

_BITS_OF_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_LIMITS_OF_BYTES = np.where(_BITS_OF_BYTES == 1, np.float32(np.inf), np.float32(-np.inf))


class Masks(NamedTuple):
    """The masks of a step, on the device.

    rows: (masks,) int64, whose they are. bits: (masks, words) int32: bit i % 32 of word i // 32 is 1 where token i may
    come.
    """

    rows: Tensor
    bits: Tensor


def masks(formed: Mapping[int, SampleRow], width: int) -> Arrays:
    """Collect the fields of `Masks`, on the host; nothing where no row has a form.

    formed: the rows that have one, by their places in the step. width: of the logits.
    """
    if not formed:
        return []
    bits = np.zeros((len(formed), -(-width // 32)), np.int32)
    for mask, row in zip(bits, formed.values(), strict=True):
        if row.form is not None:
            row.form.fill(mask)
    return [np.array([*formed], np.int64), bits]


def mask(logits: Tensor, masks: Masks) -> Tensor:
    """Return a copy of the logits (rows, width) with -inf for what may not come.

    In rows with a mask, what is no number is the least number there is: some token that may come is then the best one,
    whatever the model says.
    """
    own = logits.index_select(0, masks.rows)
    own.nan_to_num_(nan=torch.finfo(own.dtype).min)
    confined = torch.minimum(own, _limits(masks.bits, own.shape[1]).to(own.dtype))
    if len(masks.rows) == len(logits):
        return confined
    return logits.clone().index_copy_(0, masks.rows, confined)


def _limits(bits: Tensor, width: int) -> Tensor:
    """Return (masks, width) float32: infinity for what may come, -infinity for the rest."""
    if staging.is_host(bits.device):
        # A choice by each number's own bit would be a branch for each, which nothing predicts.
        limits = _LIMITS_OF_BYTES.take(bits.numpy().view(np.uint8), axis=0)
        return torch.from_numpy(limits.reshape(len(bits), -1)[:, :width])
    places = torch.arange(32, dtype=torch.int32, device=bits.device)
    may_come = ((bits[:, :, None] >> places) & 1).flatten(1)[:, :width].to(torch.bool)
    return torch.where(may_come, torch.inf, -torch.inf)
