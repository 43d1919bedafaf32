"""Seats, pages and shares of the budget, without a queue."""

from collections.abc import Callable

from peftserve.server.engine.scheduling.batch import Batch, Chunk
from peftserve.server.engine.scheduling.page_pool import PagePool
from peftserve.server.engine.scheduling.prefix_cache import PrefixCache
from peftserve.server.engine.scheduling.running import RunningSequences
from peftserve.server.engine.scheduling.sequence import Lease, Sequence

MakeSequence = Callable[..., Sequence]
PAGE = 4


def running_on(pool: PagePool, budget: int = 16, most: int = 4) -> RunningSequences:
    prefixes = PrefixCache(pool, PAGE, enabled=False)
    return RunningSequences(pool, prefixes, page_size=PAGE, max_batch_tokens=budget, most=most)


def begin(running: RunningSequences, sequence: Sequence, most: int) -> Chunk | None:
    sequence.lease = Lease((), (), ())
    return running.start(sequence, most)


def step(running: RunningSequences, *chunks: Chunk | None) -> None:
    """Launch prefills and all that decodes."""
    prefills = [chunk for chunk in chunks if chunk is not None]
    running.launched(Batch.by_adapter([*running.decodes.batch().chunks, *prefills], prefills, []))
    running.check_integrity()


def test_a_prompt_runs_in_chunks_and_then_decodes(make_sequence: MakeSequence) -> None:
    pool = PagePool(8)
    running, sequence = running_on(pool), make_sequence(range(10), max_tokens=5)
    first = begin(running, sequence, 6)
    assert first is not None
    assert (first.start, first.num_tokens, first.samples, pool.num_used) == (0, 6, False, 2)
    step(running, first)
    [second] = running.continued()
    assert (second.start, second.num_tokens, second.samples, pool.num_used) == (6, 4, True, 3)
    step(running, second)
    assert running.continued() == []
    assert len(running.decodes) == 1
    running.remove(sequence)
    assert (len(running), len(running.decodes), pool.num_used, sequence.seat) == (0, 0, 0, -1)
    running.check_integrity()


def test_prefills_leave_a_token_to_those_behind_them(make_sequence: MakeSequence) -> None:
    running = running_on(PagePool(40), budget=7)
    for sequence in (make_sequence(range(20)), make_sequence(range(20)), make_sequence(range(20), adapters="ab")):
        begin(running, sequence, 1)
    chunks = running.continued()
    assert [chunk.num_tokens for chunk in chunks] == [4, 1, 1]
    assert running.budget_left(chunks) == 0


def test_the_newest_gives_its_pages_and_begins_again(make_sequence: MakeSequence) -> None:
    pool = PagePool(4)
    running = running_on(pool, most=2)
    old, new = make_sequence(range(12)), make_sequence(range(8))
    step(running, begin(running, old, 8), begin(running, new, 8))
    assert running.is_full
    assert begin(running_on(pool), make_sequence(range(4)), 4) is None, "no page is left"
    [chunk] = running.continued()
    assert (chunk.sequence, chunk.end) == (old, 12)
    assert (list(running.preempted), running.num_preemptions) == ([new], 1)
    assert (new.seat, new.pages, new.num_computed) == (-1, [], 0)
    running.remove(new)
    assert not running.preempted
    running.check_integrity()


def test_the_newest_of_the_tenant_that_holds_most_gives_its_pages(make_sequence: MakeSequence) -> None:
    """Whoever has come since then, unless it is the only one of its tenant."""
    running = running_on(PagePool(7), budget=40)
    hogs = [make_sequence(range(n), tenant="hog") for n in (12, 8)]
    other = make_sequence(range(8), tenant="other")
    step(running, *(begin(running, sequence, 12) for sequence in [*hogs, other]))
    while not running.preempted:
        running.continued()
        step(running)
    assert list(running.preempted) == [hogs[1]]
    while len(running.preempted) < 2:
        running.continued()
        step(running)
    assert list(running.preempted) == [hogs[1], other]
