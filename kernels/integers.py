"""Arithmetic on whole numbers, one or an array of them, in which lists and sizes are counted."""

from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
N = TypeVar("N", int, Ints)


@overload
def cdiv(number: int, by: int) -> int: ...
@overload
def cdiv(number: npt.NDArray[Any] | int, by: npt.NDArray[Any]) -> Ints: ...
@overload
def cdiv(number: npt.NDArray[Any], by: int) -> Ints: ...


def cdiv(number: Any, by: Any) -> Any:
    """Return the quotient, rounded up."""
    return -(-number // by)


def round_up(number: N, to: int) -> N:
    """Return the least multiple of `to` that is no less."""
    return -(-number // to) * to


def ranges(sizes: Ints) -> Ints:
    """Return 0 to size - 1 for each size, one after the other."""
    return np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def repeated(sizes: Ints) -> tuple[Ints, Ints]:
    """Return each index as often as its size says, and 0 to size - 1 for each."""
    if (sizes == 1).all():
        return np.arange(len(sizes)), np.zeros_like(sizes)
    index = np.repeat(np.arange(len(sizes)), sizes)
    return index, np.arange(len(index)) - (np.cumsum(sizes) - sizes)[index]
