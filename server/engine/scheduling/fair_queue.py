"""The waiting sequences, fair between adapters.

Each tenant (adapter, mixture or base) has a first-in first-out queue and a counter of the tokens that it was
served; whoever was served least comes next. A tenant that was idle starts at the least counter of those that wait,
so idling saves up no credit. Virtual token counter of Sheng et al. 2024, "Fairness in Serving Large Language
Models" (arXiv:2401.00588).
"""

import heapq
from collections.abc import Hashable, Iterator

from .sequence import Sequence


class FairQueue:
    """The waiting sequences, in one queue for each tenant."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, dict[str, Sequence]] = {}
        self._served: dict[Hashable, float] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._queues.values():
            yield from queue.values()

    def add(self, sequence: Sequence) -> None:
        tenant = sequence.tenant
        if tenant not in self._queues:
            floor = min((self._served[t] for t in self._queues), default=max(self._served.values(), default=0.0))
            self._served[tenant] = max(self._served.get(tenant, 0.0), floor)
            self._queues[tenant] = {}
        self._queues[tenant][sequence.request_id] = sequence

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.tenant]
        del queue[sequence.request_id]
        if not queue:
            del self._queues[sequence.tenant]

    def charge(self, tenant: Hashable, tokens: int) -> None:
        """Count tokens that the tenant was served."""
        self._served[tenant] = self._served.get(tenant, 0.0) + tokens

    def forget_idle(self, active: set[Hashable]) -> None:
        """Drop the counters of tenants that neither wait nor are `active`."""
        keep = active | self._queues.keys()
        self._served = {tenant: served for tenant, served in self._served.items() if tenant in keep}

    def in_order(self) -> Iterator[Sequence]:
        """Yield all sequences in the order of admission, as if each were admitted. The queue must not change."""
        heap = [(self._served[t], i, iter(queue.values())) for i, (t, queue) in enumerate(self._queues.items())]
        heapq.heapify(heap)
        while heap:
            served, order, queue = heap[0]
            sequence = next(queue, None)
            if sequence is None:
                heapq.heappop(heap)
                continue
            yield sequence
            heapq.heapreplace(heap, (served + sequence.num_remaining, order, queue))
