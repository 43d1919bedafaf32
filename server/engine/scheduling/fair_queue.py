"""The waiting sequences: fair between tenants by their weights, and inside a tenant between what answers.

Two levels of virtual token counters (Sheng et al. 2024, "Fairness in Serving Large Language Models", arXiv:2401.00588).
Each tenant has a counter of the tokens that it was served, divided by its weight; whoever has the least comes next.
Inside a tenant, sequences of a lower priority number come first, and among equals those of the adapter (mixture, base)
that was served least, first come first served. So a priority orders what one tenant has waiting, and never lets it pass
another's share. Who was idle starts at the least counter of those that wait, so idling saves up no credit.
"""

import heapq
from collections.abc import Collection, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from .sequence import Payer, Sequence

K = TypeVar("K", bound=Hashable)
Mixture = tuple[str, ...]
Queue = dict[str, Sequence]  # by request id, the oldest first


class FairQueue:
    """The waiting sequences, in one line for each tenant."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}  # of all tenants that have been charged lately or wait
        self._waiting: dict[str, _Line] = {}  # those with anything in them
        self._counters: _Counters[str] = _Counters()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._waiting.values():
            yield from line

    def add(self, sequence: Sequence, *, first: bool = False) -> None:
        """Queue a sequence. first: ahead of all that answer by the same adapters at the same priority."""
        tenant, line = sequence.tenant, self._line(sequence.tenant)
        line.weight = sequence.weight
        if tenant not in self._waiting:
            self._counters.enter(tenant, self._waiting)
            self._waiting[tenant] = line
        line.add(sequence, first)

    def remove(self, sequence: Sequence) -> None:
        line = self._waiting[sequence.tenant]
        line.remove(sequence)
        if not line:
            del self._waiting[sequence.tenant]

    def charge(self, payer: Payer, tokens: int) -> None:
        """Count tokens that a tenant was served, and which of its adapters they were for."""
        line = self._line(payer.tenant)
        self._counters.charge(payer.tenant, tokens / line.weight)
        line.counters.charge(payer.mixture, tokens)

    def forget_idle(self, active: Collection[Payer]) -> None:
        """Drop the counters of those that neither wait nor are `active`."""
        tenants = {payer.tenant for payer in active}.union(self._waiting)
        self._counters.keep(tenants)
        self._lines = {tenant: line for tenant, line in self._lines.items() if tenant in tenants}
        for tenant, line in self._lines.items():
            line.counters.keep({payer.mixture for payer in active if payer.tenant == tenant}.union(line.mixtures()))

    def in_order(self) -> Iterator[Sequence]:
        """Yield all sequences in the order of admission, as if each were admitted. The queue must not change."""
        served, lines = self._counters.served, self._waiting.items()
        yield from _merged((served[tenant], line.weight, line.in_order()) for tenant, line in lines)

    def weights(self) -> dict[str, float]:
        """Return the weight of each tenant that waits."""
        return {tenant: line.weight for tenant, line in self._waiting.items()}

    def heads(self, tenants: Iterable[str]) -> Iterator[Sequence]:
        """Yield what comes next of each of some tenants that wait, of the one that was served least first."""
        for tenant in sorted(tenants, key=self._counters.served.__getitem__):
            yield next(self._waiting[tenant].in_order())

    def _line(self, tenant: str) -> "_Line":
        if tenant not in self._lines:
            self._lines[tenant] = _Line()
        return self._lines[tenant]


class _Line:
    """What one tenant has waiting: a queue for each priority and mixture.

    weight: of the tenant, by its last request.
    """

    def __init__(self) -> None:
        self.weight = 1.0
        self.counters: _Counters[Mixture] = _Counters()
        self._queues: dict[int, dict[Mixture, Queue]] = {}
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Sequence]:
        for queues in self._queues.values():
            for queue in queues.values():
                yield from queue.values()

    def mixtures(self) -> set[Mixture]:
        return {mixture for queues in self._queues.values() for mixture in queues}

    def add(self, sequence: Sequence, first: bool) -> None:
        mixture, waiting = sequence.payer.mixture, self.mixtures()
        if mixture not in waiting:
            self.counters.enter(mixture, waiting)
        queues = self._queues.setdefault(sequence.priority, {})
        queue = queues.get(mixture, {})
        if first:
            queues[mixture] = {sequence.request_id: sequence, **queue}
        else:
            queue[sequence.request_id] = sequence
            queues[mixture] = queue
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        queues = self._queues[sequence.priority]
        queue = queues[sequence.payer.mixture]
        del queue[sequence.request_id]
        self._size -= 1
        if not queue:
            del queues[sequence.payer.mixture]
        if not queues:
            del self._queues[sequence.priority]

    def in_order(self) -> Iterator[Sequence]:
        served = dict(self.counters.served)
        for priority in sorted(self._queues):
            queues = self._queues[priority].items()
            for sequence in _merged((served[mixture], 1.0, iter(queue.values())) for mixture, queue in queues):
                served[sequence.payer.mixture] += sequence.num_remaining
                yield sequence


class _Counters(Generic[K]):
    """What each of several was served, as far as they have to be compared."""

    def __init__(self) -> None:
        self.served: dict[K, float] = {}
        self._highest = 0.0  # of all counters that there have been

    def enter(self, key: K, waiting: Iterable[K]) -> None:
        """Begin to compare one that was idle with those that wait: it gets what they have, and no more."""
        floor = min((self.served[other] for other in waiting), default=self._highest)
        self.charge(key, max(floor - self.served.get(key, 0.0), 0.0))

    def charge(self, key: K, amount: float) -> None:
        self.served[key] = self.served.get(key, 0.0) + amount
        self._highest = max(self._highest, self.served[key])

    def keep(self, keys: Collection[K]) -> None:
        self.served = {key: served for key, served in self.served.items() if key in keys}


def _merged(sources: Iterable[tuple[float, float, Iterator[Sequence]]]) -> Iterator[Sequence]:
    """Yield from the source that has been served least, and charge it for what it has yielded.

    sources: what each was served already, its weight, and its sequences in order.
    """
    heap = [(served, i, weight, sequences) for i, (served, weight, sequences) in enumerate(sources)]
    heapq.heapify(heap)
    while heap:
        served, i, weight, sequences = heap[0]
        sequence = next(sequences, None)
        if sequence is None:
            heapq.heappop(heap)
            continue
        yield sequence
        heapq.heapreplace(heap, (served + sequence.num_remaining / weight, i, weight, sequences))
