"""The floor of the nucleus of top-p, which is the probability of its last token, for rows with a mass each.

The floor of a row is its least probability v for which all probabilities above v hold less than the mass.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import staging

_GUESSES = (512, 8192)
"""Tokens sorted on a CPU at first. Most nuclei are smaller, and to sort a whole vocabulary costs many times more."""

_ROWS = 64
"""Rows handled at once on a device: bounds the integer copies of their probabilities."""

_DIGITS = ((20, 11), (10, 10), (0, 10))
"""Lowest bit and number of bits of each digit of a float32 that is not negative, from the highest digit on."""

_UNITS = 2.0**62
"""What a probability of 1 counts for in whole numbers. A row's sum may pass 1 by its rounding, and still fits."""


def nucleus_floors(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Return the floors (rows,) float32; 0 where top_p is 1.

    probabilities: (rows, vocab) float32. top_p: (rows,) float64. A row of NaNs gets any number. Waits for no device.
    """
    if staging.is_host(probabilities.device):
        return torch.from_numpy(_floors_by_sorting(probabilities.numpy(), top_p.numpy()))
    pairs = zip(probabilities.split(_ROWS), top_p.split(_ROWS), strict=True)
    return torch.where(top_p < 1.0, torch.cat([_floors_by_digits(*pair) for pair in pairs]), 0.0)


def _floors_by_sorting(probabilities: NDArray[np.float32], top_p: NDArray[np.float64]) -> NDArray[np.float32]:
    floors = np.zeros(len(top_p), np.float32)
    left = np.flatnonzero(top_p < 1.0)
    for num_best in (*_GUESSES, probabilities.shape[1]):
        if len(left):
            floors[left], short = _floors_of_best(probabilities[left], top_p[left], num_best)
            left = left[short]
    return floors


def _floors_of_best(
    probabilities: NDArray[np.float32], top_p: NDArray[np.float64], num_best: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the floors, and whether `num_best` tokens were too few to find them."""
    if num_best < probabilities.shape[1]:
        probabilities = np.partition(probabilities, -num_best, axis=-1)[:, -num_best:]
    best = np.sort(probabilities, axis=-1)[:, ::-1]
    mass = best.cumsum(axis=-1, dtype=np.float64)
    size = (mass - best < top_p[:, None]).sum(axis=-1).clip(min=1)
    return np.take_along_axis(best, size[:, None] - 1, axis=-1)[:, 0], mass[:, -1] < top_p


def _floors_by_digits(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Find the floor's bits from the highest on, each digit from the mass that every value of it holds.

    Floats that are not negative are in the order of their bits. Masses are whole numbers, so that the order in which a
    device adds them does not show. A NaN would be a place outside of the table, and stop a GPU.
    """
    probabilities = probabilities.nan_to_num(nan=0.0)
    bits = probabilities.view(torch.int32)
    mass = (probabilities.to(torch.float64) * _UNITS).to(torch.int64)
    wanted = (top_p * _UNITS).to(torch.int64).clamp(min=1)[:, None]
    above, found = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for low, size in _DIGITS:
        digit = (bits >> low) & ((1 << size) - 1)
        candidate = (bits >> (low + size)) == found
        held = mass.new_zeros(len(mass), 1 << size)
        held.scatter_add_(1, digit.to(torch.int64), torch.where(candidate, mass, 0))
        higher = above + held.flip(1).cumsum(1).flip(1) - held  # what lies above each value of the digit
        value = (higher >= wanted).sum(dim=1, keepdim=True)
        above = higher.gather(1, value)
        found = (found << size) + value
    return found.squeeze(1).to(torch.int32).view(torch.float32)
