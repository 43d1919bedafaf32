"""The uniform numbers behind the tokens."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from peftserve.server.engine.sampling.randomness import seed_bits
from peftserve.server.engine.sampling.randomness import uniforms as uniforms_of


def uniforms(seeds: Iterable[int], positions: Iterable[int]) -> NDArray[np.float64]:
    return uniforms_of(np.array([*map(seed_bits, seeds)], np.uint64), np.array([*positions], np.int64))


def test_is_the_published_splitmix64() -> None:
    """Outputs of the reference implementation for the state that seed 0 is mixed to (0xE220A8397B1DCDAF)."""
    state, expected = 0xE220A8397B1DCDAF, []
    for _ in range(5):
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        expected.append(((z ^ (z >> 31)) >> 11) / 2**53)
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert uniforms([0] * 5, range(5)).tolist() == expected


@given(st.lists(st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**31)), min_size=1, max_size=20))
def test_each_depends_on_its_own_pair_only(pairs: list[tuple[int, int]]) -> None:
    seeds, positions = zip(*pairs, strict=True)
    together = uniforms(seeds, positions)
    assert together.tolist() == [uniforms([seed], [position])[0] for seed, position in pairs]
    assert ((together >= 0) & (together < 1)).all()


@pytest.mark.parametrize("neighbours", ["seeds", "positions"])
def test_neighbours_are_independent_and_uniform(neighbours: str) -> None:
    n = 20_000
    drawn = uniforms(range(n), [3] * n) if neighbours == "seeds" else uniforms([3] * n, range(n))
    counts = np.histogram(drawn, bins=50, range=(0, 1))[0]
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 100  # 49 degrees of freedom: 100 is beyond 5 sigma
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03
