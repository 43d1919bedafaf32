"""Pages that sequences leave to each other, without a scheduler."""

from collections.abc import Callable

import pytest

from peftserve.server.engine.scheduling.page_pool import PagePool
from peftserve.server.engine.scheduling.prefix_cache import PrefixCache
from peftserve.server.engine.scheduling.sequence import UNKNOWN, Sequence

MakeSequence = Callable[..., Sequence]
PAGE = 4


@pytest.fixture
def pool() -> PagePool:
    return PagePool(8)


def run_first(pool: PagePool, sequence: Sequence, cache: PrefixCache, end: int) -> list[int]:
    sequence.pages = pool.take(-(-end // PAGE))
    cache.publish(sequence, end)
    return sequence.pages


def test_only_whole_pages_are_found_and_never_all_of_a_text(pool: PagePool, make_sequence: MakeSequence) -> None:
    cache = PrefixCache(pool, PAGE, enabled=True)
    first = make_sequence(prompt=range(8))
    pages = run_first(pool, first, cache, 7)
    assert (first.num_published, len(first.page_keys)) == (1, 1)
    assert cache.find(make_sequence(prompt=range(9))) == pages[:1]
    cache.publish(first, 8)
    assert cache.find(make_sequence(prompt=range(9))) == pages
    assert cache.find(make_sequence(prompt=range(8))) == pages[:1], "the last token's logits come from nowhere"
    assert cache.find(make_sequence(prompt=range(1, 9))) == []


def test_a_page_with_a_token_that_is_not_known_has_no_key(pool: PagePool, make_sequence: MakeSequence) -> None:
    cache = PrefixCache(pool, PAGE, enabled=True)
    run_first(pool, make_sequence(prompt=range(8)), cache, 8)
    waiting = make_sequence(prompt=range(8))
    waiting.tokens = [*range(7), UNKNOWN]
    assert len(cache.find(waiting)) == 1
    assert len(waiting.page_keys) == 1


@pytest.mark.parametrize(("enabled", "sampling"), [(False, {}), (True, {"prompt_logprobs": 0})])
def test_where_nothing_may_be_found(
    pool: PagePool, make_sequence: MakeSequence, enabled: bool, sampling: dict[str, int]
) -> None:
    cache = PrefixCache(pool, PAGE, enabled=enabled)
    run_first(pool, make_sequence(prompt=range(8)), cache, 8)
    assert cache.find(make_sequence(prompt=range(8), **sampling)) == []


def test_the_adapter_s_part_of_a_text_is_its_own(pool: PagePool, make_sequence: MakeSequence) -> None:
    """What comes before it begins to work is the base's."""
    cache = PrefixCache(pool, PAGE, enabled=True)
    pages = run_first(pool, make_sequence(prompt=range(12)), cache, 12)
    late, early = make_sequence(prompt=range(13), adapters=["a"]), make_sequence(prompt=range(13), adapters=["a"])
    late.active_from = 8
    assert cache.find(late) == pages[:2]
    assert cache.find(early) == []
