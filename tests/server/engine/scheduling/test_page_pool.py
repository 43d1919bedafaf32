"""The page pool against a model that keeps one plain record for each page."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from peftserve.server.engine.scheduling.page_pool import PagePool

NUM_PAGES = 7
KEYS = [bytes([i]) for i in range(10)]


@dataclass
class Page:
    """freed: when it was last freed; of pages with a key, the one freed first goes first."""

    holders: int = 0
    key: bytes | None = None
    freed: int = 0


class PoolMachine(RuleBasedStateMachine):
    """Holds are lists of pages, as sequences have them."""

    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.pages = [Page() for _ in range(NUM_PAGES)]
        self.clock = 0

    def free(self) -> list[int]:
        return [i for i, page in enumerate(self.pages) if page.holders == 0]

    def page_of(self, key: bytes) -> int | None:
        return next((i for i, page in enumerate(self.pages) if page.key == key), None)

    @rule(target=holds, share=st.floats(0, 1))
    def take(self, share: float) -> list[int]:
        free = self.free()
        taken = self.pool.take(round(share * len(free)))
        assert len(set(taken)) == len(taken)
        assert set(taken) <= set(free)
        lost = [i for i in taken if self.pages[i].key is not None]
        left = [i for i in free if i not in taken]
        if lost:
            assert all(self.pages[i].key is not None for i in left), "a known prefix was lost before an empty page"
        assert all(self.pages[i].freed < self.pages[j].freed for i in lost for j in left)
        for i in taken:
            self.pages[i] = Page(holders=1)
        return taken

    @rule(target=holds, keys=st.lists(st.sampled_from(KEYS), max_size=4))
    def hold_prefix(self, keys: list[bytes]) -> list[int]:
        found = [self.page_of(key) for key in keys]
        known = found[: found.index(None)] if None in found else found
        pages = self.pool.lookup(keys)
        assert pages == known
        left = [i for i in self.free() if i not in pages]
        assert self.pool.num_free_without(list(dict.fromkeys(pages))) == len(left)
        self.pool.hold(pages)
        for i in pages:
            self.pages[i].holders += 1
        return pages

    @rule(pages=holds, index=st.integers(0, 3), key=st.sampled_from(KEYS))
    def publish(self, pages: list[int], index: int, key: bytes) -> None:
        if index < len(pages):
            self.pool.publish(pages[index], key)
            if self.page_of(key) is None and self.pages[pages[index]].key is None:
                self.pages[pages[index]].key = key

    @rule(pages=consumes(holds))
    def release(self, pages: list[int]) -> None:
        self.pool.release(pages)
        for i in reversed(pages):
            self.clock += 1
            self.pages[i].holders -= 1
            self.pages[i].freed = self.clock

    @precondition(lambda self: any(page.key for page in self.pages))
    @rule()
    def forget_all(self) -> None:
        self.pool.forget_all()
        for page in self.pages:
            page.key = None

    @invariant()
    def agrees(self) -> None:
        self.pool.check_integrity()
        assert self.pool.holders() == [page.holders for page in self.pages]
        assert self.pool.num_free == len(self.free())
        assert self.pool.num_used == NUM_PAGES - len(self.free())


TestPagePool = PoolMachine.TestCase
TestPagePool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_end_of_a_prefix_is_forgotten_before_its_beginning() -> None:
    pool = PagePool(3)
    pages = pool.take(3)
    for page, key in zip(pages, KEYS, strict=False):
        pool.publish(page, key)
    pool.release(pages)
    pool.release(pool.take(1))
    assert pool.lookup(KEYS[:3]) == pages[:2]


def test_integrity_notices_a_page_that_is_lost() -> None:
    pool = PagePool(2)
    pool._free.popitem()
    with pytest.raises(AssertionError, match="page 1: 0 holders, free: False"):
        pool.check_integrity()
