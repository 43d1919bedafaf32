"""The beginning of a permutation is torch's own, whatever its size, its seed and how much of it is wanted."""

import pytest
import torch

from peftserve.adapters.peft import draws
from peftserve.adapters.peft.draws import first_of_permutation


def whole(size: int, seed: int) -> torch.Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [1, 2, 3, 1000, 99_991, 1 << 20])
@pytest.mark.parametrize("seed", [0, 777, -5, (1 << 63) - 1])
def test_it_is_torch_s(size: int, seed: int) -> None:
    permutation = whole(size, seed)
    for count in sorted({1, 2, size // 2, size - 1, size} & {*range(1, min(size, 50_000) + 1)}):
        assert torch.equal(first_of_permutation(size, count, seed), permutation[:count])


def test_a_large_one_takes_no_memory_and_a_larger_one_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    first = first_of_permutation(draws._FRONT_TO_BACK - 1, 1000, 777)
    assert len(first.unique()) == 1000
    assert first.max() < draws._FRONT_TO_BACK
    monkeypatch.setattr(draws, "_FRONT_TO_BACK", 500)
    monkeypatch.setattr(draws, "_shuffled", None)
    assert torch.equal(first_of_permutation(500, 20, 3), whole(500, 3)[:20])


def test_another_way_to_shuffle_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    draws._is_as_known.cache_clear()
    monkeypatch.setattr(draws, "_words", lambda count, seed: torch.arange(count))
    assert torch.equal(first_of_permutation(700, 30, 4), whole(700, 4)[:30])
    draws._is_as_known.cache_clear()
