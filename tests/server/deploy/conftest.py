"""What deals sequences out, in this process, over replicas whose engines are real processes without a model."""

import asyncio
import contextlib
import itertools
import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from peftserve.server.api.engine.client import EngineClient
from peftserve.server.api.engine.launched import LaunchedEngine
from peftserve.server.config import EngineConfig
from peftserve.server.deploy.dialer import Dialer
from peftserve.server.deploy.process import deal_out
from peftserve.server.wire.engine_socket import KNOCK
from peftserve.server.wire.launch import encode_config
from peftserve.server.wire.messages import AddRequest, SamplingParams, Shutdown, WeightedAdapter

PATIENCE = 60.0  # seconds; a busy machine takes 20 for a start
ENGINE = Path(__file__).parents[1] / "api" / "fake_engine_process.py"


def engine_command(door, config):
    return [sys.executable, str(ENGINE), str(door), encode_config(config)]


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


class LocalReplica:
    """An engine, and what dials for it."""

    def __init__(self, name, model):
        self.name = name
        self.engine = LaunchedEngine(EngineConfig(model=model), engine_command)
        self.dialer = Dialer(name, self.engine.admit)
        self._end = None

    async def start(self, target):
        await self.engine.start()
        self._end = asyncio.create_task(self._close_with_engine())
        self.dialer.dial(target)

    def signal(self, number):
        os.kill(self.engine._process.pid, number)

    async def kill(self):
        self.signal(signal.SIGKILL)
        await self.engine.over()

    async def close(self):
        self.dialer.close()
        await self.engine.shutdown()

    async def _close_with_engine(self):
        await self.engine.over()
        self.dialer.close()


class LocalFleet:
    """Replicas of this event loop. target: where they dial, once they are started."""

    def __init__(self, num_replicas, model):
        self.replicas = {}
        self.target = None
        self._loop = asyncio.get_running_loop()
        self._model = model
        self._num_replicas = num_replicas
        self._names = (f"replica-{i}" for i in itertools.count())

    def open(self):
        return "127.0.0.1"

    def start(self, target):
        self.target = target
        for _ in range(self._num_replicas):
            asyncio.run_coroutine_threadsafe(self.add(), self._loop).result(PATIENCE)

    def close(self):
        for replica in self.replicas.values():
            asyncio.run_coroutine_threadsafe(replica.close(), self._loop).result(PATIENCE)

    async def add(self):
        name = next(self._names)
        replica = self.replicas[name] = LocalReplica(name, self._model)
        await replica.start(self.target)
        return replica


class Reader:
    """What a sequence says: its tokens, and a future that ends with its last output."""

    def __init__(self, client, request):
        self.tokens = []
        self.ended = asyncio.get_running_loop().create_future()
        client.submit(request, self)

    def push(self, output):
        self.tokens += output.token_ids
        if output.finish_reason is not None or output.error is not None:
            self.ended.set_result(output)

    def fail(self, death):
        self.ended.set_exception(death)


def request(request_id, max_tokens=5, adapters=()):
    return AddRequest(
        request_id=request_id,
        prompt_token_ids=[5, 6, 7],
        sampling=SamplingParams(max_tokens=max_tokens),
        adapters=[WeightedAdapter(digest) for digest in adapters],
    )


def connect(door):
    """Return a connection through the door, as the API process gives one to each of its own."""
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(door, [KNOCK], [theirs.fileno()])
    return ours


@pytest.fixture
def dealing():
    """Return a context manager that gives a client, the fleet, and the door for other clients."""

    @contextlib.asynccontextmanager
    async def start(num_replicas=2, model="fake"):
        door, theirs = socket.socketpair()
        fleet = LocalFleet(num_replicas, model)
        task = asyncio.create_task(deal_out(theirs, fleet))
        client = EngineClient()
        with door, theirs:
            await client.attach(connect(door))
            try:
                async with asyncio.timeout(PATIENCE):
                    await client.loaded()
                await until(lambda: client.stats.replicas == num_replicas)
                yield client, fleet, door
            finally:
                client._now().send(Shutdown())
                async with asyncio.timeout(PATIENCE):
                    assert await task == 0
                client.leave()

    return start
