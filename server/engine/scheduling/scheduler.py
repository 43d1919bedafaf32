"""The choice of the tokens that a step runs: continuous batching with chunked prefill under a token budget.

Running sequences go first, decodes before prefills; then waiting ones whose adapters are on the device, fairly
between tenants and, inside each, between adapters. Knows no tensors.

A token takes one of the budget for each adapter that works on it, at least one. Each running sequence advances in every
step, by one token if no more fit, and one begins only where the budget has something left. So no step takes more than
the budget, or than one token of all that run, which is less than the budget and what the last to begin takes for one.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from itertools import islice
from typing import Any, Protocol

from ...wire.messages import WeightedAdapter
from .batch import Batch, Chunk
from .exchange import Exchange
from .fair_queue import FairQueue
from .page_pool import PagePool
from .prefix_cache import PrefixCache
from .running import RunningSequences
from .sequence import Lease, Sequence
from .snapshots import Snapshots

STARVATION_STEPS = 32  # steps that a sequence waits for a slot before resident adapters take no new sequences
FORGET_STEPS = 1024  # steps between clearances of the counters of tenants that have gone
PREFETCH = 4  # sequences behind the last one admitted whose adapters are loaded ahead of time


class Residency(Protocol):
    """The adapters on the device, as the scheduler sees them."""

    def prepare(self, adapters: Seq[WeightedAdapter]) -> bool:
        """Return whether all of them are at hand to be reserved; start to fetch those that are not."""

    def reserve(self, adapters: Seq[WeightedAdapter]) -> Lease | None:
        """Return slots for all prepared adapters, and start to load them; None: no room until someone releases."""

    def is_ready(self, lease: Lease) -> bool: ...

    def ready_since(self, lease: Lease) -> float: ...

    def release(self, lease: Lease) -> None: ...


class Scheduler:
    """Chooses each step's batch.

    pool: the KV pages, of `page_size` tokens each. max_batch_tokens: token budget of a step.
    max_running: sequences in a step.
    """

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
        snapshots: Snapshots | None = None,
        keeps_state: bool = False,
    ) -> None:
        """refuse: returns what, if anything, stands against a sequence, now that its adapters are there to tell.

        snapshots: of the state behind prefixes, of a model that keeps some.
        """
        self.pool = pool
        self.refused: list[tuple[Sequence, str]] = []  # waiting ones, and why; for the engine to end
        self.waiting = FairQueue()
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
        self._refuse = refuse
        self._residency = residency
        self.keeps_state = keeps_state
        self.snapshots = snapshots or Snapshots()
        self._prefixes = prefixes = PrefixCache(
            pool, page_size, enabled=prefix_caching, snapshots=self.snapshots, keeps_state=keeps_state
        )
        self._running = RunningSequences(
            pool, prefixes, page_size=page_size, max_batch_tokens=max_batch_tokens, most=max_running
        )
        self._step = 0

    @property
    def running(self) -> list[Sequence]:
        return self._running.sequences

    @property
    def preempted(self) -> deque[Sequence]:
        return self._running.preempted

    @property
    def num_preemptions(self) -> int:
        return self._running.num_preemptions

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
        if sequence.seat >= 0 or sequence in self.preempted:
            self._running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        if sequence.lease is not None:
            self._residency.release(sequence.lease)
            sequence.lease = None

    def forget_prefixes(self) -> None:
        """Let no known prefix be found any more, such as when a step has failed."""
        self._prefixes.forget_all()

    def schedule(self) -> Batch:
        """Return the next step's batch; an empty one when everything waits for adapters."""
        self._step += 1
        if self._step % FORGET_STEPS == 0:
            self.waiting.forget_idle({sequence.payer for sequence in [*self.running, *self.preempted]})
        preemptions = self.num_preemptions
        chunks = self._running.continued()
        started: list[Sequence] = []
        if preemptions == self.num_preemptions:
            started, blocked = self._admit(chunks)
            if self.num_waiting and (self._running.is_full or blocked is not None):
                started += self._take_back(chunks, blocked)
        decodes = self._running.decodes.batch()
        return Batch.by_adapter([*decodes.chunks, *chunks], chunks, started) if chunks else decodes

    def launched(self, batch: Batch) -> None:
        """Note that the device has the step, and count its tokens for fairness.

        All tokens of the steps before are known by now.
        """
        for payer, rows in self._running.decodes.payers.items():
            self.waiting.charge(payer, rows)
        for chunk in batch.prefills:
            self.waiting.charge(chunk.sequence.payer, chunk.num_tokens)
        self._running.launched(batch)

    def _admit(self, chunks: list[Chunk]) -> tuple[list[Sequence], Sequence | None]:
        """Let waiting sequences begin, whose first chunks come behind the others.

        Returns them, and the one that found too few pages, for which those behind it wait.
        """
        started: list[Sequence] = []
        blocked: Sequence | None = None
        if not self.preempted and not self.waiting:
            return started, blocked
        budget = self._running.budget_left(chunks)
        prefetch = PREFETCH
        starving = False
        for sequence in self._candidates():
            room = blocked is None and budget > 0 and not self._running.is_full
            if not room:
                prefetch -= 1
                if prefetch < 0:
                    break
            if sequence.lease is None and not (starving and sequence.adapters):
                starving = self._reserve(sequence) or starving
            if not room or not self._may_begin(sequence) or self._running.is_coming(sequence):
                continue
            chunk = self._running.start(sequence, max(budget // sequence.cost, 1))
            if chunk is None:
                blocked = sequence
                continue
            self._note_start(chunk)
            chunks.append(chunk)
            budget -= chunk.num_tokens * sequence.cost
            started.append(sequence)
        for sequence in started:
            self._leave_queue(sequence)
        return started, blocked

    def _take_back(self, chunks: list[Chunk], blocked: Sequence | None) -> list[Sequence]:
        """Let one sequence begin before its turn or in the place of others, within its tenant's share.

        blocked: whose turn it was, and that found too few pages.
        """
        waiting = self._weights_of_waiting()
        if len(waiting.keys() | {sequence.tenant for sequence in self.running}) < 2:
            return []
        exchange = Exchange(self.pool, self._running, waiting, blocked)
        for sequence in islice(self._heads(exchange.takers()), PREFETCH):
            if sequence.lease is None and self._reserve(sequence):
                return []
            if not self._may_begin(sequence) or self._running.is_coming(sequence):
                continue
            givers = exchange.givers(sequence)
            if givers is not None and self._running.budget_left(chunks) + sum(giver.cost for giver in givers) > 0:
                return self._begin_instead(sequence, givers, chunks)
        return []

    def _begin_instead(self, sequence: Sequence, givers: list[Sequence], chunks: list[Chunk]) -> list[Sequence]:
        for giver in givers:
            self._running.take_back(giver)
        chunk = self._running.start(sequence, max(self._running.budget_left(chunks) // sequence.cost, 1))
        assert chunk is not None, "there are pages for all of it"
        self._note_start(chunk)
        chunks.append(chunk)
        self._leave_queue(sequence)
        for giver in givers:
            self.waiting.add(giver, first=True)
        return [sequence]

    def _candidates(self) -> Iterator[Sequence]:
        yield from self._to_go_on()
        yield from self.waiting.in_order()

    def _to_go_on(self) -> Iterator[Sequence]:
        """Yield what was preempted and has to begin again, the oldest first."""
        return (sequence for sequence in self.preempted if not sequence.awaits_its_end)

    def _heads(self, tenants: list[str]) -> Iterator[Sequence]:
        """Yield what comes first of each of some tenants: what was preempted, or else what waits."""
        first: dict[str, Sequence] = {}
        for sequence in self._to_go_on():
            first.setdefault(sequence.tenant, sequence)
        yield from [first[tenant] for tenant in tenants if tenant in first]
        yield from self.waiting.heads(tenant for tenant in tenants if tenant not in first)

    def _weights_of_waiting(self) -> dict[str, float]:
        """Return the weight of each tenant that waits, to begin or to go on."""
        return self.waiting.weights() | {sequence.tenant: sequence.weight for sequence in self._to_go_on()}

    def _reserve(self, sequence: Sequence) -> bool:
        """Ask for slots. Returns whether it has waited so long that no other adapter may take slots before it."""
        if not self._residency.prepare(sequence.adapters):
            return False
        sequence.lease = self._residency.reserve(sequence.adapters)
        sequence.blocked_steps = 0 if sequence.lease else sequence.blocked_steps + 1
        return sequence.blocked_steps > STARVATION_STEPS

    def _may_begin(self, sequence: Sequence) -> bool:
        """Return whether its adapters are there and nothing stands against it; what does is noted in `refused`."""
        if sequence.lease is None or not self._residency.is_ready(sequence.lease):
            return False
        if any(sequence is refused for refused, _ in self.refused):
            return False
        why = self._refuse(sequence, sequence.lease)
        if why is not None:
            self.refused.append((sequence, why))
        return why is None

    def _leave_queue(self, sequence: Sequence) -> None:
        if sequence in self.preempted:
            self.preempted.remove(sequence)
        else:
            self.waiting.remove(sequence)

    def _note_start(self, chunk: Chunk) -> None:
        """Count the first start only: what comes after a preemption is neither waiting nor a hit."""
        sequence, cached = chunk.sequence, chunk.start - chunk.sequence.num_virtual
        if sequence.num_cached is None:
            sequence.num_cached = cached
            sequence.begun = time.monotonic()
            sequence.queue_seconds = sequence.begun - sequence.arrived
            if sequence.lease is not None:
                sequence.load_seconds = max(self._residency.ready_since(sequence.lease) - sequence.arrived, 0.0)
            self.prefix_query_tokens += len(sequence.prompt)
            self.prefix_hit_tokens += cached

    def stats(self) -> dict[str, Any]:
        """Return the fields of EngineStats that it knows."""
        return {
            "num_running": len(self.running),
            "kv_pages_used": self.pool.num_used,
            "kv_pages_total": self.pool.num_pages,
            "state_slots": len(self.running) if self.keeps_state else None,
            "state_snapshots": len(self.snapshots) if self.keeps_state else None,
            "prefix_query_tokens": self.prefix_query_tokens,
            "prefix_hit_tokens": self.prefix_hit_tokens,
            "preemptions": self.num_preemptions,
        }

    def check_integrity(self) -> None:
        """Raises AssertionError where pages, seats and sequences do not agree."""
        self.pool.check_integrity()
        holders = [0] * self.pool.num_pages
        for sequence in [*self.running, *self.preempted, *self.waiting]:
            for page in sequence.pages:
                holders[page] += 1
        assert holders == self.pool.holders(), "a page's holders are not the sequences that list it"
        self._running.check_integrity()
        self.snapshots.check_integrity()
