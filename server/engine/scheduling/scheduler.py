"""Which tokens the next step runs: continuous batching with chunked prefill under a token budget.

Running sequences go first, decodes before prefills; then waiting ones whose adapters are on the device, fairly
between adapters. When pages run out, the newest sequence is preempted and recomputed later (Kwon et al. 2023,
"Efficient Memory Management for Large Language Model Serving with PagedAttention", arXiv:2309.06180). Knows no
tensors.

A token takes one of the budget for each adapter that works on it, at least one. Each running sequence advances in every
step, by one token if no more fit, and one begins only where the budget has something left. So no step takes more than
the budget, or than one token of all that run, which is less than the budget and what the last to begin takes for one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from typing import Protocol

from ...wire.messages import WeightedAdapter
from .batch import Batch, Chunk
from .decodes import Decodes
from .fair_queue import FairQueue
from .page_pool import PagePool
from .prefix_cache import PrefixCache
from .sequence import Lease, Sequence

PROMPT_LOGPROBS_CHUNK = 256  # rows of the vocabulary's width that one sequence may need at once
STARVATION_STEPS = 32  # steps that a sequence waits for a slot before resident adapters take no new sequences
FORGET_STEPS = 1024  # steps between clearances of the counters of tenants that have gone
PREFETCH = 4  # sequences behind the last one admitted whose adapters are loaded ahead of time


class Residency(Protocol):
    """The adapters on the device, as the scheduler sees them."""

    def prepare(self, adapters: Seq[WeightedAdapter]) -> bool:
        """Whether all of them are at hand to be reserved; starts to fetch those that are not."""

    def reserve(self, adapters: Seq[WeightedAdapter]) -> Lease | None:
        """Slots for all prepared adapters or for none; starts to load them. None: no room until someone releases."""

    def is_ready(self, lease: Lease) -> bool: ...

    def release(self, lease: Lease) -> None: ...


class Scheduler:
    """pool: the KV pages, of `page_size` tokens each. max_batch_tokens: token budget of a step."""

    def __init__(
        self,
        pool: PagePool,
        residency: Residency,
        *,
        page_size: int,
        max_batch_tokens: int,
        max_running: int,
        prefix_caching: bool,
        refuse: Callable[[Sequence, Lease], str | None] = lambda *_: None,
    ) -> None:
        """refuse: what, if anything, stands against a sequence, now that its adapters are there to tell."""
        self.pool = pool
        self.refused: list[tuple[Sequence, str]] = []  # waiting ones, and why; for the engine to end
        self._refuse = refuse
        self.waiting = FairQueue()
        self.preempted: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # those that decode, those that do not yet, and those that await their end
        self.num_preemptions = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self._residency = residency
        self._page_size = page_size
        self._max_batch_tokens = max_batch_tokens
        self._max_running = max_running
        self._prefixes = PrefixCache(pool, page_size, enabled=prefix_caching)
        self._step = 0
        self._decodes = Decodes(max_running, page_size)
        self._prefills: list[Sequence] = []
        self._seats = list(reversed(range(max_running)))  # that are free

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.preempted)

    def has_work(self) -> bool:
        return bool(self.running or self.num_waiting)

    def add(self, sequence: Sequence) -> None:
        self.waiting.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence wherever it is, and give back its pages and slots.

        A step that still runs it may go on to use both: the device does what later steps ask of them after that.
        """
        sequence.is_over = True
        if sequence.seat >= 0:
            self._stop_running(sequence)
        elif sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._give_up_pages(sequence)
        if sequence.lease is not None:
            self._residency.release(sequence.lease)
            sequence.lease = None

    def schedule(self) -> Batch:
        """Chunks for the next step; empty when everything waits for adapters."""
        self._step += 1
        if self._step % FORGET_STEPS == 0:
            self.waiting.forget_idle({sequence.tenant for sequence in [*self.running, *self.preempted]})
        preemptions = self.num_preemptions
        chunks = self._schedule_running()
        started = self._admit(chunks) if preemptions == self.num_preemptions else []
        decodes = self._decodes.batch()
        return Batch.by_adapter([*decodes.chunks, *chunks], chunks, started) if chunks else decodes

    def launched(self, batch: Batch) -> None:
        """The device has the step: whatever comes after it finds its keys and values, and its tokens, there.

        All tokens of the steps before are known by now.
        """
        for tenant, rows in self._decodes.tenants.items():
            self.waiting.charge(tenant, rows)
        for sequence in self._decodes.launched():
            self._prefixes.publish(sequence, sequence.num_computed)
        for chunk in batch.prefills:
            self.waiting.charge(chunk.sequence.tenant, chunk.num_tokens)
            if not chunk.sequence.is_over:
                self._launched_prefill(chunk)

    def _launched_prefill(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        sequence.num_computed = chunk.end
        if chunk.num_tokens == 1:
            self._prefixes.publish(sequence, chunk.end)
        if chunk.end < len(sequence.tokens):
            return
        self._prefills.remove(sequence)
        if chunk.samples:
            sequence.expect()
            if not sequence.is_full:
                self._decodes.add(sequence)

    # Running sequences

    def _schedule_running(self) -> list[Chunk]:
        """Pages for all that run, and the chunks of those that do not decode."""
        granted: set[Sequence] = set()
        for sequence in self._decodes.turn_pages():
            if sequence.seat >= 0:  # not preempted for one before it
                self._grow(sequence, sequence.num_computed + 1, granted)
        chunks: list[Chunk] = []
        for sequence in tuple(self._prefills):
            if sequence.seat >= 0:  # not preempted for one before it
                count = self._chunk_size(sequence, sequence.num_computed, self._budget_of(sequence, chunks))
                if self._grow(sequence, sequence.num_computed + count, granted):
                    chunks.append(self._make_chunk(sequence, count))
        return chunks

    def _budget_of(self, sequence: Sequence, chunks: Seq[Chunk]) -> int:
        """Tokens that it may run beside `chunks`, so that all behind it that run get at least one."""
        behind = sum(other.cost for other in self._prefills[len(chunks) + 1 :])
        return max((self._budget_left(chunks) - behind) // sequence.cost, 1)

    def _budget_left(self, chunks: Seq[Chunk]) -> int:
        taken = sum(chunk.num_tokens * chunk.sequence.cost for chunk in chunks)
        return self._max_batch_tokens - self._decodes.cost - taken

    def _chunk_size(self, sequence: Sequence, start: int, most: int) -> int:
        count = min(len(sequence.tokens) - start, most)
        return min(count, PROMPT_LOGPROBS_CHUNK) if sequence.wants_prompt_logprobs else count

    def _grow(self, sequence: Sequence, end: int, granted: set[Sequence]) -> bool:
        """Pages for tokens [0, end), preempting newer sequences if need be. False: preempted itself.

        granted: those who have got theirs for this step already; if it gets them, it is one more.
        """
        needed = self._num_pages(end) - len(sequence.pages)
        while needed > self.pool.num_free:
            victim = max((s for s in self.running if s not in granted), key=lambda s: s.arrival)
            self._preempt(victim)
            if victim is sequence:
                return False
        if needed > 0:
            sequence.pages += self.pool.take(needed)
        granted.add(sequence)
        return True

    def _preempt(self, victim: Sequence) -> None:
        self._stop_running(victim)
        self._give_up_pages(victim)
        self.preempted.appendleft(victim)
        self.num_preemptions += 1

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        if sequence in self._prefills:
            self._prefills.remove(sequence)
        elif sequence in self._decodes:
            self._decodes.remove(sequence)
        self._seats.append(sequence.seat)
        sequence.seat = -1

    def _give_up_pages(self, sequence: Sequence) -> None:
        self.pool.release(sequence.pages)
        sequence.pages.clear()
        sequence.num_computed = sequence.num_published = 0

    # Waiting sequences

    def _admit(self, chunks: list[Chunk]) -> list[Sequence]:
        """Let waiting sequences begin, whose first chunks come behind the others. Returns them."""
        started: list[Sequence] = []
        if not self.preempted and not self.waiting:
            return started
        budget = self._budget_left(chunks)
        prefetch = PREFETCH
        room, starving = True, False
        for sequence in self._candidates():
            room = room and budget > 0 and len(self.running) < self._max_running
            if not room:
                prefetch -= 1
                if prefetch < 0:
                    break
            if sequence.lease is None and not (starving and sequence.adapters):
                starving = self._reserve(sequence) or starving
            if not room or sequence.lease is None or not self._residency.is_ready(sequence.lease):
                continue
            if (why := self._refuse(sequence, sequence.lease)) is not None:
                self.refused.append((sequence, why))
                continue
            chunk = self._start(sequence, max(budget // sequence.cost, 1))
            if chunk is None:
                room = False
                continue
            chunks.append(chunk)
            budget -= chunk.num_tokens * sequence.cost
            started.append(sequence)
        for sequence in started:
            self._leave_queue(sequence)
        return started

    def _candidates(self) -> Iterator[Sequence]:
        yield from (sequence for sequence in self.preempted if not sequence.awaits_its_end)
        yield from self.waiting.in_order()

    def _reserve(self, sequence: Sequence) -> bool:
        """Ask for slots. True: it has waited so long that no other adapter may take slots before it."""
        if not self._residency.prepare(sequence.adapters):
            return False
        sequence.lease = self._residency.reserve(sequence.adapters)
        sequence.blocked_steps = 0 if sequence.lease else sequence.blocked_steps + 1
        return sequence.blocked_steps > STARVATION_STEPS

    def _start(self, sequence: Sequence, most: int) -> Chunk | None:
        """Give it pages for its first chunk, known prefixes among them. None: not enough pages now."""
        assert sequence.lease is not None
        sequence.begin(sequence.lease)
        hits = self._prefixes.find(sequence)
        found = len(hits) * self._page_size
        start = max(found, sequence.num_virtual)
        count = self._chunk_size(sequence, start, most)
        needed = self._num_pages(start + count) - len(hits)
        if self.pool.num_free_without(hits) < needed:
            return None
        self.pool.hold(hits)
        sequence.pages = hits + self.pool.take(needed)
        sequence.num_computed, sequence.num_published = start, len(hits)
        self._note_start(sequence, max(found - sequence.num_virtual, 0))
        self.running.append(sequence)
        self._prefills.append(sequence)
        sequence.seat = self._seats.pop()
        return self._make_chunk(sequence, count, fill=found if found < start else None)

    def _leave_queue(self, sequence: Sequence) -> None:
        if sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _note_start(self, sequence: Sequence, cached: int) -> None:
        """Of the first start only: what comes after a preemption is neither waiting nor a hit."""
        if sequence.num_cached is None:
            sequence.num_cached = cached
            sequence.queue_seconds = time.monotonic() - sequence.arrived
            self.prefix_query_tokens += len(sequence.prompt)
            self.prefix_hit_tokens += cached

    def _make_chunk(self, sequence: Sequence, count: int, fill: int | None = None) -> Chunk:
        """The chunk to run.

        Pages that it fills can be shared from this step on, as every layer writes before it reads; one that a single
        token fills, which is written while others read, and one with a token that is not known yet, from the next step
        on.
        """
        begin, end = sequence.num_computed, sequence.num_computed + count
        if count > 1:
            self._prefixes.publish(sequence, min(end, sequence.num_known))
        samples = end == len(sequence.tokens) and sequence.sampling.max_tokens > 0
        return Chunk(sequence, begin, count, samples, fill)

    def _num_pages(self, num_tokens: int) -> int:
        return -(-num_tokens // self._page_size)

    def check_integrity(self) -> None:
        """Raises AssertionError where pages and sequences do not agree."""
        self.pool.check_integrity()
        holders = [0] * self.pool.num_pages
        for sequence in [*self.running, *self.preempted, *self.waiting]:
            for page in sequence.pages:
                holders[page] += 1
        assert holders == self.pool.holders(), "a page's holders are not the sequences that list it"
        self._decodes.check_integrity()
        seats = sorted([*self._seats, *(sequence.seat for sequence in self.running)])
        assert seats == list(range(self._max_running)), f"seats are lost or doubled: {seats}"
