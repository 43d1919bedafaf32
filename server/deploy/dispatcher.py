"""Deals out the sequences of the API processes to replicas, and their outputs back: one engine, to those who ask.

Which replica runs a sequence is the affinity's business (`affinity.py`). One that goes takes along only what it has
begun to answer: all else begins anew on another one. Knows connections; does not know who starts replicas.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from collections.abc import Sequence as Several
from random import Random

from msgspec.structs import replace

from ..api.engine.client import identity_of
from ..wire.faults import NoReplica, ReplicaLost
from ..wire.messages import (
    AbortRequest,
    AddRequest,
    Beat,
    Command,
    EngineStats,
    Event,
    InspectAdapter,
    LoadAdapter,
    ModelInfo,
    PinAdapters,
    ReleaseAdapter,
    SequenceOutput,
    Shutdown,
)
from .affinity import DEFAULT_BOUND, Bound, choose
from .calls import Calls
from .door import Client, Door
from .engines import Engines
from .replica import Replica, digests_of
from .sequences import Sequence
from .totals import Totals

logger = logging.getLogger(__name__)

MOST_TRIES = 2  # replicas on which one sequence is begun


class Dispatcher:
    """All clients, all replicas, and all that runs. For one event loop. stop: called when all shall end."""

    def __init__(self, stop: Callable[[], None], bound: Bound = DEFAULT_BOUND) -> None:
        self.door = Door(self._handle, self._left)
        self._stop = stop
        self._bound = bound
        self._draw = Random()
        self._engines = Engines()
        self._replicas: dict[str, Replica] = {}
        self._sequences: dict[str, Sequence] = {}
        self._totals = Totals()
        self._leaving: set[str] = set()  # names of replicas that are to end
        self._info: ModelInfo | None = None  # of the first replica that has loaded its model
        self._calls = Calls(self.ready, self._nearest, self._engines)

    def ready(self) -> list[Replica]:
        """Return the replicas that take sequences."""
        return [replica for name, replica in self._replicas.items() if replica.ready and name not in self._leaving]

    async def admit(self, name: str, end: socket.socket) -> None:
        """Take in a replica that has connected, in place of its connection before."""
        if (before := self._replicas.get(name)) is not None:
            before.close("it has connected anew")
        replica = self._replicas[name] = Replica(self._engines.come(name), self._heard, self._gone)
        await replica.open(end)

    async def take_leave(self, name: str) -> None:
        """Give a replica nothing more, and return when what it does has ended, or when it has gone."""
        if (replica := self._replicas.get(name)) is not None:
            self._leaving.add(name)
            self._tell_stats(EngineStats())
            await replica.idle()

    def beat(self) -> None:
        """Tell the clients that this turns."""
        self.door.send(Beat())

    def close(self) -> None:
        for replica in tuple(self._replicas.values()):
            replica.close("the server is shutting down")
        self.door.close()

    # What clients say

    def _handle(self, client: Client, command: Command) -> None:
        match command:
            case AddRequest():
                sequence = Sequence(command, client, self._forget, self._lost)
                self._sequences[command.request_id] = sequence
                self._deal(sequence)
            case AbortRequest(request_id):
                if (running := self._sequences.pop(request_id, None)) is not None:
                    running.abort()
            case InspectAdapter() | ReleaseAdapter() | LoadAdapter() | PinAdapters():
                self._calls.begin(command, client.send)
            case Shutdown():
                self._stop()

    def _left(self, client: Client) -> None:
        for request_id, sequence in tuple(self._sequences.items()):
            if sequence.client is client:
                sequence.abort()
                del self._sequences[request_id]

    def _deal(self, sequence: Sequence) -> None:
        """Give a sequence to a replica, or end it where there is none."""
        ready = {replica.name: replica for replica in self.ready()}
        if not ready:
            self._end(sequence, NoReplica("No replica of the model runs just now; one is being started."))
            return
        states = [replica.state for replica in ready.values()]
        choice = choose(states, digests_of(sequence.request), self._draw, self._bound)
        if sequence.request.adapters:
            self._totals.dealt[choice.tier] += 1
        sequence.begin(ready[choice.name])

    def _end(self, sequence: Sequence, fault: NoReplica | ReplicaLost) -> None:
        self._forget(sequence)
        sequence.client.tell(
            SequenceOutput(
                request_id=sequence.request.request_id,
                token_ids=[],
                error=fault.message,
                error_kind=type(fault).__name__,
            )
        )

    def _forget(self, sequence: Sequence) -> None:
        self._sequences.pop(sequence.request.request_id, None)

    def _lost(self, sequence: Sequence) -> None:
        """Begin a sequence anew whose replica has gone, unless its client has read some of it, or it was so before.

        It may be the one that ends whatever runs it, and shall not go through all of them.
        """
        if sequence.has_said or sequence.num_begun >= MOST_TRIES:
            self._end(sequence, ReplicaLost("The replica that ran this request has ended; ask again."))
        else:
            self._deal(sequence)

    def _nearest(self, ready: Several[Replica], digest: str) -> Replica:
        name = choose([replica.state for replica in ready], [digest], self._draw, self._bound).name
        return next(replica for replica in ready if replica.name == name)

    # What replicas say

    def _heard(self, replica: Replica, event: Event) -> None:
        match event:
            case ModelInfo():
                self._take(replica, event)
            case EngineStats():
                self._totals.count(replica.engine, event)
                self._tell_stats(event)

    def _take(self, replica: Replica, info: ModelInfo) -> None:
        if self._info is not None and identity_of(info) != identity_of(self._info):
            replica.close("its model is another than that of the other replicas")
            return
        logger.info("Replica %s answers", replica.name)
        if self._info is None:
            # Whoever asks the system for signs of life asks for those of this process.
            self._info = replace(info, pid=os.getpid())
            self.door.send(self._info)
        # In this turn it is not yet ready.
        asyncio.get_running_loop().call_soon(self._welcome, replica)

    def _welcome(self, replica: Replica) -> None:
        self._calls.welcome(replica)
        self._tell_stats(EngineStats())

    def _tell_stats(self, newest: EngineStats) -> None:
        # One that is to end takes nothing more, but what it runs, holds and counts is there.
        there = [replica.stats for replica in self._replicas.values() if replica.ready]
        self.door.send(self._totals.sum(there, newest, num_ready=len(self.ready())))

    def _gone(self, replica: Replica) -> None:
        self._engines.go(replica.engine)
        if self._replicas.get(replica.name) is replica:
            del self._replicas[replica.name]
            self._leaving.discard(replica.name)
            logger.warning("Replica %s has gone; %d are left", replica.name, len(self._replicas))
        self._tell_stats(EngineStats())
