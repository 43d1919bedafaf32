"""The uniform number behind each sampled token, as a function of nothing but the seed and the token's position.

No generator is kept: a preempted, rescheduled or re-batched sequence draws the same numbers again, on any device.
"""

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MASK = (1 << 64) - 1


def seed_bits(seed: int) -> int:
    """Return the seed modulo 2^64."""
    return seed & _MASK


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each pair of a seed and a position, with 53 random bits.

    Element `position` of the SplitMix64 sequence (Steele, Lea and Flood 2014) that starts at the mixed seed: a
    counter-based generator, so that neighbouring seeds and positions are independent.
    """
    start = _mix(seeds + _GAMMA)
    bits = _mix(start + _GAMMA * positions.astype(np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's output function, a bijection of 64 bits in which each input bit flips half of the output."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
