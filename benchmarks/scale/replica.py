"""One server of a fleet: its queue, its batch, its adapters' memories.

Time goes from change to change: between two, all steps of the batch take the same, so nothing happens that could not be
reckoned when it ends. A prompt is computed alone, while each chunk of it gives a token to those that run.
"""

import heapq
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from .costs import BYTES_A_RANK, Costs, Origin
from .memory import Holders, Memory

CHUNK = 2048  # tokens of a step
STILL = 1e-6  # of a step, by which rounding may miss the end of one


@dataclass(slots=True)
class Request:
    """A request, and what became of it: where its adapter was, and when it had its first token and its last."""

    number: int
    arrival: float
    adapter: int
    rank: int
    prompt: float
    output: float
    origin: Origin | None = None  # None: it was on the device
    first: float = inf
    end: float = inf

    @property
    def size(self) -> float:
        return self.rank * BYTES_A_RANK


@dataclass(frozen=True)
class Shape:
    """What a replica has. device, host, disk: bytes for adapters. slots: adapters on the device."""

    device: float = 8 * 2**30
    slots: int = 64
    host: float = 64 * 2**30
    disk: float = 512 * 2**30
    running: int = 256


class Replica:
    """See the module. Every method is told the time, which never goes back, and returns when to `turn` next."""

    def __init__(self, number: int, shape: Shape, costs: Costs, holders: Sequence[Holders]) -> None:
        self._costs, self._most = costs, shape.running
        slots = (shape.slots, 10**9, 10**9)
        sizes = (shape.device, shape.host, shape.disk)
        self._device, self._host, self._disk = (
            Memory(size, most, number, index) for size, most, index in zip(sizes, slots, holders, strict=True)
        )
        self.queued = 0.0  # tokens of prompts that wait
        self.batch: list[tuple[float, int, Request]] = []  # a heap by the step in which each ends
        self.ranks = 0.0  # of the different adapters in the batch
        self.busy = 0.0  # seconds
        self.loaded: Counter[str] = Counter()  # bytes
        self.ended: list[Request] = []  # since whoever runs the replica last took them
        self.loads: list[tuple[float, int]] = []  # begun since then: when each is done, and its adapter
        self._in_batch: Counter[int] = Counter()
        self._ready: deque[Request] = deque()
        self._loading: dict[int, list[Request]] = {}
        self._blocked: deque[Request] = deque()
        self._until: dict[Origin, float] = {}  # when each way of loading is free again
        self._prefilling: tuple[float, Request] | None = None
        self._steps, self._now = 0.0, 0.0
        self._step = 0.0

    def take(self, request: Request, now: float) -> float:
        """Take a request that comes now."""
        self._pass_to(now)
        self.queued += request.prompt
        if not self._place(request, now):
            self._blocked.append(request)
        return self._go_on(now)

    def has_loaded(self, adapter: int, now: float) -> float:
        """Go on with those that waited for an adapter."""
        self._pass_to(now)
        waited = self._loading.pop(adapter)
        for _ in waited[1:]:
            self._device.pin(adapter)
        self._ready.extend(waited)
        return self._go_on(now)

    def turn(self, now: float) -> float:
        """Do what is due."""
        self._pass_to(now)
        return self._go_on(now)

    def check_integrity(self) -> None:
        """Raise AssertionError where a sum is wrong; to be called when nothing runs."""
        for memory in (self._device, self._host, self._disk):
            memory.check_integrity()
        assert [*self.batch, *self._ready, *self._loading, *self._blocked] == []
        assert self._prefilling is None
        assert abs(self.queued) < 1e-3
        assert self.ranks == 0

    def _place(self, request: Request, now: float) -> bool:
        """Have a request wait for the batch or for its adapter; return whether it can."""
        adapter = request.adapter
        if adapter in self._loading:
            self._loading[adapter].append(request)
            request.origin = self._loading[adapter][0].origin
        elif self._device.pin(adapter):
            self._ready.append(request)
        elif (self._blocked and self._blocked[0] is not request) or not self._device.add(adapter, request.size):
            return False
        else:
            self._device.pin(adapter)
            self._load(request, now)
        return True

    def _load(self, request: Request, now: float) -> None:
        request.origin = self._origin(request.adapter)
        done = max(now, self._until.get(request.origin, 0.0)) + self._costs.byte[request.origin] * request.size
        self._until[request.origin] = done
        self.loaded[request.origin] += int(request.size)
        self._host.add(request.adapter, request.size)
        self._disk.add(request.adapter, request.size)
        self._loading[request.adapter] = [request]
        self.loads.append((done, request.adapter))

    def _origin(self, adapter: int) -> Origin:
        if adapter in self._host:
            return "host"
        return "disk" if adapter in self._disk else "afar"

    def _pass_to(self, now: float) -> None:
        passed = now - self._now
        if self.batch or self._prefilling:
            self.busy += passed
        if self.batch and not self._prefilling:
            self._steps += passed / self._step
        self._now = now

    def _go_on(self, now: float) -> float:
        """End what has ended and begin what can; return when something ends next."""
        if self._prefilling and now >= self._prefilling[0]:
            self._join(self._prefilling[1], now)
            self._prefilling = None
        while self.batch and self.batch[0][0] <= self._steps + STILL:
            self._leave(heapq.heappop(self.batch)[2], now)
        if self._ready and not self._prefilling and len(self.batch) < self._most:
            request = self._ready.popleft()
            self._prefilling = now + request.prompt * self._costs.token, request
        if self._prefilling:
            return self._prefilling[0]
        if not self.batch:
            return inf
        self._step = self._costs.step(len(self.batch), self.ranks)
        return now + max(0.0, self.batch[0][0] - self._steps) * self._step

    def _join(self, request: Request, now: float) -> None:
        request.first = now
        self.queued -= request.prompt
        self._steps += request.prompt / CHUNK
        heapq.heappush(self.batch, (self._steps + request.output - 1, request.number, request))
        if not self._in_batch[request.adapter]:
            self.ranks += request.rank
        self._in_batch[request.adapter] += 1

    def _leave(self, request: Request, now: float) -> None:
        request.end = now
        self.ended.append(request)
        self._in_batch[request.adapter] -= 1
        if not self._in_batch[request.adapter]:
            del self._in_batch[request.adapter]
            self.ranks -= request.rank
        if self._device.unpin(request.adapter):
            while self._blocked and self._place(self._blocked[0], now):
                self._blocked.popleft()
