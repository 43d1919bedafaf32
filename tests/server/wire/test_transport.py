import asyncio
import os
import threading
import time

import pytest
import zmq

from peftserve.server.wire.messages import (
    AbortRequest,
    AddRequest,
    EngineStats,
    Outputs,
    SamplingParams,
    SequenceOutput,
    Shutdown,
)
from peftserve.server.wire.transport import ApiSocket, EngineSocket


@pytest.fixture
def address(tmp_path):
    return f"ipc://{tmp_path / 'wire'}"


async def _poll(engine, count):
    """Commands until there are `count`, without blocking the loop that sends them."""
    commands = []
    while len(commands) < count:
        commands += engine.poll(0)
        await asyncio.sleep(0.001)
    return commands


async def test_messages_arrive_whole_and_in_order_both_ways(address):
    api, engine = ApiSocket(address), EngineSocket(address)
    try:
        request = AddRequest(
            request_id="a", prompt_token_ids=[1, 2], sampling=SamplingParams(logit_bias={5: -1.5}, seed=3)
        )
        api.send(request)
        api.send(AbortRequest("a"))
        api.send(Shutdown())
        assert await _poll(engine, 3) == [request, AbortRequest("a"), Shutdown()]
        outputs = Outputs([SequenceOutput(request_id="a", token_ids=[7], finish_reason="stop")])
        engine.send(EngineStats(num_running=2))
        engine.send(outputs)
        assert await api.receive() == EngineStats(num_running=2)
        assert await api.receive() == outputs
    finally:
        engine.close()
        api.close()


async def test_commands_sent_before_the_engine_connects_wait_for_it(address):
    api = ApiSocket(address)
    for i in range(3):
        api.send(AbortRequest(str(i)))
    engine = EngineSocket(address)
    try:
        assert [c.request_id for c in await _poll(engine, 3)] == ["0", "1", "2"]
    finally:
        engine.close()
        api.close()


async def test_engine_never_blocks_on_an_api_that_does_not_read(address):
    api, engine = ApiSocket(address), EngineSocket(address)
    try:
        for i in range(20_000):  # far beyond ZeroMQ's default marks and the kernel's socket buffers
            engine.send(Outputs([SequenceOutput(request_id=str(i), token_ids=[1] * 50)]))
        for i in range(20_000):
            event = await api.receive()
            assert isinstance(event, Outputs)
            assert event.outputs[0].request_id == str(i)
    finally:
        engine.close()
        api.close()


async def test_engine_socket_works_in_a_poller_beside_another_descriptor(address):
    api, engine = ApiSocket(address), EngineSocket(address)
    reader, writer = os.pipe()
    try:
        poller = zmq.Poller()
        poller.register(engine.socket, zmq.POLLIN)
        poller.register(reader, zmq.POLLIN)
        api.send(Shutdown())
        ready = await asyncio.to_thread(poller.poll, 5000)
        assert [handle for handle, _ in ready] == [engine.socket]
        assert engine.poll(0) == [Shutdown()]
        os.close(writer)
        ready = await asyncio.to_thread(poller.poll, 5000)
        assert [handle for handle, _ in ready] == [reader]
    finally:
        os.close(reader)
        engine.close()
        api.close()


def test_poll_wakes_for_a_command_and_gives_up_after_its_timeout(address):
    engine = EngineSocket(address)
    assert engine.poll(0.01) == []
    sent = threading.Event()

    async def send():
        api = ApiSocket(address)
        api.send(Shutdown())
        await asyncio.to_thread(sent.wait)
        api.close()

    thread = threading.Thread(target=lambda: (time.sleep(0.05), asyncio.run(send())))
    thread.start()
    assert engine.poll(None) == [Shutdown()]
    sent.set()
    thread.join()
    engine.close()
