"""The sequences that run: their seats, their pages, and the share of the token budget that each takes in a step.

When pages run out, the newest sequence is preempted and recomputed later (Kwon et al. 2023, "Efficient Memory
Management for Large Language Model Serving with PagedAttention", arXiv:2309.06180): the newest of the tenant furthest
above its share of the pages, if that has another that goes on. Knows no queue and no tensors.
"""

from bisect import bisect
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Sequence as Seq

from .batch import Batch, Chunk
from .decodes import Decodes
from .page_pool import PagePool
from .prefix_cache import PrefixCache
from .sequence import Sequence
from .shares import Shares

PROMPT_LOGPROBS_CHUNK = 256  # rows of the vocabulary's width that one sequence may need at once


class RunningSequences:
    """The sequences that decode, those that do not yet, and those that await their end.

    pool: the KV pages, of `page_size` tokens each. max_batch_tokens: token budget of a step. most: sequences at once.
    """

    def __init__(
        self, pool: PagePool, prefixes: PrefixCache, *, page_size: int, max_batch_tokens: int, most: int
    ) -> None:
        self.sequences: list[Sequence] = []
        self.decodes = Decodes(most, page_size)
        self.preempted: deque[Sequence] = deque()  # to begin again, the oldest first
        self.num_preemptions = 0
        self.max_batch_tokens = max_batch_tokens
        self.most = most
        self._pool = pool
        self._prefixes = prefixes
        self._page_size = page_size
        self._prefills: list[Sequence] = []
        self._seats = list(reversed(range(most)))  # that are free

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def is_full(self) -> bool:
        """Return whether every seat is taken."""
        return len(self.sequences) >= self.most

    def budget_left(self, chunks: Seq[Chunk]) -> int:
        """Return what decodes and `chunks` leave of a step's budget."""
        taken = sum(chunk.num_tokens * chunk.sequence.cost for chunk in chunks)
        return self.max_batch_tokens - self.decodes.cost - taken

    def continued(self) -> list[Chunk]:
        """Take pages for the next step of all, preempting the newest where they run out.

        Returns the chunks of those that do not decode.
        """
        granted: set[Sequence] = set()
        for sequence in self._unless_preempted(self.decodes.turn_pages()):
            self._grow(sequence, sequence.num_computed + 1, granted)
        chunks: list[Chunk] = []
        for sequence in self._unless_preempted(tuple(self._prefills)):
            count = self._chunk_size(sequence, sequence.num_computed, self._share(sequence, chunks))
            if self._grow(sequence, sequence.num_computed + count, granted):
                chunks.append(self._chunk(sequence, count))
        return chunks

    def start(self, sequence: Sequence, most: int) -> Chunk | None:
        """Give a sequence a seat, and pages for its first chunk of at most `most` tokens, known prefixes among them.

        Returns None where there are not enough pages now.
        """
        assert sequence.lease is not None
        sequence.begin(sequence.lease)
        hits = self._prefixes.find(sequence)
        found = len(hits) * self._page_size
        start = max(found, sequence.num_virtual)
        sequence.num_saved = found
        count = self._chunk_size(sequence, start, most)
        needed = self.num_pages(start + count) - len(hits)
        if self._pool.num_free_without(hits) < needed:
            return None
        self._pool.hold(hits)
        sequence.pages = hits + self._pool.take(needed)
        sequence.num_computed, sequence.num_published = start, len(hits)
        self.sequences.append(sequence)
        self._prefills.append(sequence)
        sequence.seat = self._seats.pop()
        sequence.turn_from = len(sequence.tokens)
        self._prefixes.begun(sequence)
        restore = self._prefixes.restore(sequence, hits)
        return self._chunk(sequence, count, fill=found if found < start else None, restore=restore)

    def launched(self, batch: Batch) -> None:
        """Note that the device has the step: what comes after it finds its keys and values, and its tokens, there."""
        for sequence in self.decodes.launched():
            self._prefixes.publish(sequence, sequence.num_computed)
        for chunk in batch.prefills:
            if chunk.save is not None:
                self._prefixes.saved(chunk.save)
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
        self._prefixes.stopped(sequence)
        if chunk.samples:
            sequence.expect()
            if not sequence.is_full:
                self.decodes.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence's seat and pages back, if it has any, or forget that it was preempted."""
        if sequence.seat >= 0:
            self._stop(sequence)
        elif sequence in self.preempted:
            self.preempted.remove(sequence)

    def num_pages(self, num_tokens: int) -> int:
        """Return how many pages so many tokens take."""
        return -(-num_tokens // self._page_size)

    def seat_shares(self, waiting: Mapping[str, float]) -> Shares:
        """Return who has which share of the seats. waiting: the weight of each tenant that waits."""
        return Shares(self.most, self.sequences, waiting)

    def page_shares(self, waiting: Mapping[str, float]) -> Shares:
        """Return who has which share of the pages. waiting: the weight of each tenant that waits."""
        return Shares(self._pool.num_pages, self.sequences, waiting, lambda sequence: len(sequence.pages))

    def take_back(self, sequence: Sequence) -> None:
        """Take a seat and pages for another tenant's sequence. The caller queues the one that had them."""
        self._stop(sequence)
        sequence.turns_lost += 1
        self.num_preemptions += 1

    def _share(self, sequence: Sequence, chunks: Seq[Chunk]) -> int:
        """Return how many tokens it may run beside `chunks`, so that all prefills behind it get at least one."""
        behind = sum(other.cost for other in self._prefills[len(chunks) + 1 :])
        return max((self.budget_left(chunks) - behind) // sequence.cost, 1)

    def _chunk_size(self, sequence: Sequence, start: int, most: int) -> int:
        end = min(len(sequence.tokens), start + most)
        count = self._prefixes.next_end(sequence, start, end) - start
        return min(count, PROMPT_LOGPROBS_CHUNK) if sequence.wants_prompt_logprobs else count

    def _chunk(self, sequence: Sequence, count: int, fill: int | None = None, restore: int | None = None) -> Chunk:
        """Return the chunk to run, and publish the pages that it fills.

        They can be shared from this step on, as every layer writes before it reads. One that a single token fills,
        which is written while others read, and one with a token that is not known yet, can be from the next step on.
        """
        begin, end = sequence.num_computed, sequence.num_computed + count
        if count > 1:
            self._prefixes.publish(sequence, min(end, sequence.num_known))
        samples = end == len(sequence.tokens) and sequence.sampling.max_tokens > 0
        return Chunk(sequence, begin, count, samples, fill, restore, self._prefixes.save(sequence, end))

    def is_coming(self, sequence: Sequence) -> bool:
        """Return whether a waiting sequence had better wait for what one that runs will leave."""
        assert sequence.lease is not None
        sequence.begin(sequence.lease)
        return self._prefixes.is_coming(sequence)

    def _unless_preempted(self, sequences: Seq[Sequence]) -> Iterator[Sequence]:
        """Yield those that have not been preempted for one before them."""
        return (sequence for sequence in sequences if sequence.seat >= 0)

    def _grow(self, sequence: Sequence, end: int, granted: set[Sequence]) -> bool:
        """Take pages for tokens [0, end), preempting newer sequences if need be. False: it was preempted itself.

        granted: those that have got theirs for this step already; if it gets them, it is one more.
        """
        needed = self.num_pages(end) - len(sequence.pages)
        while needed > self._pool.num_free:
            self._preempt(victim := self._victim(granted))
            if victim is sequence:
                return False
        if needed > 0:
            sequence.pages += self._pool.take(needed)
        granted.add(sequence)
        return True

    def _victim(self, granted: Collection[Sequence]) -> Sequence:
        """Return who is to give its pages to older ones. The oldest of a tenant, and of all, is the last to do so."""
        able = [sequence for sequence in self.sequences if sequence not in granted]
        tenants = Counter(sequence.tenant for sequence in self.sequences)
        pages = self.page_shares({})
        several = [sequence for sequence in able if tenants[sequence.tenant] > 1]
        return pages.furthest(several) or max(able, key=_by_arrival)

    def _preempt(self, victim: Sequence) -> None:
        self._stop(victim)
        self.preempted.insert(bisect(self.preempted, victim.arrival, key=_by_arrival), victim)
        self.num_preemptions += 1

    def _stop(self, sequence: Sequence) -> None:
        """Take back its seat and its pages."""
        self.sequences.remove(sequence)
        if sequence in self._prefills:
            self._prefills.remove(sequence)
            self._prefixes.stopped(sequence)
        elif sequence in self.decodes:
            self.decodes.remove(sequence)
        self._seats.append(sequence.seat)
        sequence.seat = -1
        self._pool.release(sequence.pages)
        sequence.pages.clear()
        sequence.num_computed = sequence.num_published = 0

    def check_integrity(self) -> None:
        """Raises AssertionError where seats or decodes do not agree with the sequences."""
        self.decodes.check_integrity()
        seats = sorted([*self._seats, *(sequence.seat for sequence in self.sequences)])
        assert seats == list(range(self.most)), f"seats are lost or doubled: {seats}"


def _by_arrival(sequence: Sequence) -> int:
    return sequence.arrival
