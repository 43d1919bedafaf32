"""Random draws of torch that PEFT makes, of which only the beginning is used."""

from functools import cache

import torch

# Below this size torch shuffles from front to back by numbers of 32 bits, so that the beginning is final early; from it
# on, torch fills a permutation whose beginning may change until its end.
_FRONT_TO_BACK = (2**32 - 1) // 20
_TRIED = 1000


def first_of_permutation(size: int, count: int, seed: int) -> torch.Tensor:
    """Return `torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count]` without drawing the rest.

    count: at most size. A permutation of a large weight's places takes seconds, and hundreds of megabytes.
    """
    if size >= _FRONT_TO_BACK or not _is_as_known():
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:count].clone()
    return _shuffled(size, count, seed)


@cache
def _is_as_known() -> bool:
    """Return whether this release of torch shuffles as the ones that this module was written for."""
    return torch.equal(_shuffled(_TRIED, _TRIED, 1), torch.randperm(_TRIED, generator=torch.Generator().manual_seed(1)))


def _shuffled(size: int, count: int, seed: int) -> torch.Tensor:
    """Return the first steps of a shuffle (Fisher and Yates, as Durstenfeld 1964), in memory for those alone."""
    steps = torch.arange(count)
    others = steps + _words(count, seed) % (size - steps)
    moved: dict[int, int] = {}
    first = []
    for here, there in enumerate(others.tolist()):
        first.append(moved.get(there, there))
        moved[there] = moved.get(here, here)
    return torch.tensor(first)


def _words(count: int, seed: int) -> torch.Tensor:
    """Return the generator's first numbers of 32 bits, as (count,) int64: torch draws whole int64 as two of them."""
    pairs = torch.empty(-(-count // 2), dtype=torch.int64)
    pairs.random_(torch.iinfo(torch.int64).min, None, generator=torch.Generator().manual_seed(seed))
    mask = 2**32 - 1
    return torch.stack((pairs >> 32 & mask, pairs & mask), dim=1).flatten()[:count]
