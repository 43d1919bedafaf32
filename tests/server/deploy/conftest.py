"""What deals sequences out, in this process, over replicas whose engines are real processes without a model."""

import asyncio
import contextlib
import socket

import pytest

from peftserve.server.api.engine.client import EngineClient
from peftserve.server.deploy.process import deal_out
from peftserve.server.wire.engine_socket import KNOCK
from peftserve.server.wire.messages import AddRequest, SamplingParams, Shutdown, WeightedAdapter
from tests.server.deploy.local_fleet import PATIENCE, LocalFleet


async def until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


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
