import asyncio
import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest

from peftserve.adapters.errors import AdapterConflict, InvalidAdapter
from peftserve.server.api.engine.client import EngineClient
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.engine.launched import LaunchedEngine
from peftserve.server.config import EngineConfig
from peftserve.server.wire.launch import encode_config
from peftserve.server.wire.messages import (
    AbortRequest,
    AddRequest,
    Command,
    EngineStats,
    Pooling,
    ReleaseAdapter,
    Reply,
    SamplingParams,
)
from peftserve.server.wire.transport import Connection, encode

PATIENCE = 60  # seconds; an idle machine takes less than 1
SCRIPT = Path(__file__).parents[1] / "fake_engine_process.py"


def _command(door, config):
    return [sys.executable, str(SCRIPT), str(door), encode_config(config)]


@contextlib.asynccontextmanager
async def _client(model="fake"):
    client = LaunchedEngine(EngineConfig(model=model), _command)
    try:
        await client.start()
        yield client
    finally:
        await client.shutdown()


def _request(request_id="a", max_tokens=5):
    sampling = SamplingParams(max_tokens=max_tokens)
    return AddRequest(request_id=request_id, prompt_token_ids=[5, 6, 7], sampling=sampling)


class _Reader:
    """What a sequence says: its tokens, and a future that ends with it."""

    def __init__(self, client, request):
        self.tokens = []
        self.ended = asyncio.get_running_loop().create_future()
        client.submit(request, self)

    def push(self, output):
        self.tokens += output.token_ids
        if output.finish_reason:
            self.ended.set_result(self.tokens)

    def fail(self, death):
        self.ended.set_exception(death)


async def _tokens(client, request):
    return await _Reader(client, request).ended


async def _until(condition):
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


async def test_sequences_run_side_by_side_and_each_gets_its_own_tokens():
    async with _client() as client:
        assert client.info is not None
        assert client.info.model_name == "fake"
        got = await asyncio.gather(*(_tokens(client, _request(str(i), i + 1)) for i in range(10)))
        assert got == [[5, 6, 7, 5, 6, 7, 5, 6, 7, 5][: i + 1] for i in range(10)]
        assert client.num_sequences == 0


async def test_stats_reach_the_listener_and_the_field():
    async with _client("slow") as client:
        seen = []
        client.add_stats_listener(seen.append)
        await _tokens(client, _request())
        assert seen[0].num_running == 1
        assert client.stats is seen[-1]


async def test_adapters_of_the_host_are_those_listed_last():
    async with _client("slow") as client:
        client._connection._receive(EngineStats(host_adapters=["a", "b"]))
        client._connection._receive(EngineStats(num_waiting=3, host_unchanged=True))
        assert (client.stats.num_waiting, client.stats.host_adapters) == (3, ["a", "b"])
        client._connection._receive(EngineStats(host_adapters=["b"]))
        assert client.stats.host_adapters == ["b"]


async def test_an_aborted_sequence_ends_in_the_engine_and_says_nothing_more():
    async with _client("slow") as client:
        reader = _Reader(client, _request(max_tokens=10_000))
        await _until(lambda: reader.tokens)
        client.abort("a")
        client.abort("a")
        said = len(reader.tokens)
        assert client.num_sequences == 0
        await _until(lambda: client.stats.num_running == 0)
        assert (len(reader.tokens), reader.ended.done()) == (said, False)


async def test_two_clients_hear_of_their_own_sequences_and_one_that_leaves_aborts_its_own():
    async with _client("slow") as client:
        other = EngineClient()
        await other.attach(client.connect())
        assert await other.loaded() == client.info
        own, others = _Reader(client, _request("a", 40)), _Reader(other, _request("b", 10_000))
        await _until(lambda: own.tokens and others.tokens and client.stats.num_running == 2)
        other.leave()
        await _until(lambda: client.stats.num_running == 1)
        assert await own.ended == ([5, 6, 7] * 14)[:40]
        with pytest.raises(EngineDead, match="shutting down"):
            await others.ended


@contextlib.asynccontextmanager
async def _attaching(client, count=1):
    """The other ends of connections that a client takes over, each in place of the one before, and none open yet."""
    pairs = [socket.socketpair() for _ in range(count)]
    attaching = asyncio.gather(*(client.attach(ours) for ours, _ in pairs))
    await asyncio.sleep(0)
    assert client.alive
    assert not attaching.done()
    engines = [Connection(theirs) for _, theirs in pairs]
    try:
        yield engines
    finally:
        await attaching
        client.leave()
        for engine in engines:
            engine.close(0)


async def _commands(engine, count):
    """Return what an engine hears, which is not less than so many commands."""
    heard = []
    decode = msgspec.msgpack.Decoder(Command).decode
    async with asyncio.timeout(PATIENCE):
        while len(heard) < count:
            heard += [decode(message) for message in engine.receive()]
            await asyncio.sleep(0.001)
    return heard


async def test_what_is_asked_while_the_next_engines_connection_opens_reaches_that_engine():
    client = EngineClient()
    async with _attaching(client) as [engine]:
        _Reader(client, _request("kept"))
        _Reader(client, _request("given up"))
        client.abort("given up")
        release = asyncio.ensure_future(client.release_adapter("a"))
        heard = await _commands(engine, 4)
        assert [type(command) for command in heard] == [AddRequest, AddRequest, AbortRequest, ReleaseAdapter]
        assert heard[2].request_id == "given up"
        engine.send(encode(Reply(heard[3].call_id)))
        async with asyncio.timeout(PATIENCE):
            await release


async def test_a_connection_that_another_replaces_while_it_opens_is_closed():
    client = EngineClient()
    async with _attaching(client, 2) as [first, second]:
        reader = _Reader(client, _request())
        await _commands(second, 1)
        await _until(lambda: first.receive() == [] and not first.open)
        assert not reader.ended.done()
    with pytest.raises(EngineDead, match="shutting down"):
        await reader.ended


async def test_calls_about_adapters_are_answered():
    async with _client() as client:
        assert await client.load_adapter("a") == "device"
        with pytest.raises(InvalidAdapter, match="rank is 0"):
            await client.load_adapter("bad")
        await client.pin_adapters(["a"])
        with pytest.raises(AdapterConflict, match="1 adapters can be pinned"):
            await client.pin_adapters(["a", "b"])
        assert not client._connection._calls


async def test_a_prompt_becomes_a_vector_or_an_error():
    async with _client() as client:
        assert await client.embed([3, 4, 5]) == [3.0, 4.0, 5.0]
        with pytest.raises(ValueError, match="there is no layer 99"):
            await client.embed([3, 4, 5], Pooling("mean", 99))
        assert client.num_sequences == 0


async def test_a_vector_that_nobody_waits_for_is_aborted():
    async with _client("slow") as client:
        waiting = asyncio.create_task(client.embed([3, 4, 5]))
        await _until(lambda: client.num_sequences == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert client.num_sequences == 0
        waiting = asyncio.create_task(client.embed([3, 4, 5]))
        await _until(lambda: client.num_sequences == 1)
        client.leave()
        with pytest.raises(EngineDead):
            await waiting


async def test_every_client_hears_of_the_engines_death():
    async with _client("slow") as client:
        other = EngineClient()
        await other.attach(client.connect())
        await other.loaded()
        os.kill(client._process._process.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(EngineDead, match="closed its connection"):
                await _tokens(other, _request())
        assert not other.alive


async def test_adapter_calls_return_cards_and_raise_the_errors_of_adapters():
    async with _client() as client:
        assert (await client.inspect_adapter("good", Path("/x"))).rank == 8
        await client.release_adapter("good")
        with pytest.raises(InvalidAdapter, match="rank is 0") as caught:
            await client.inspect_adapter("bad", Path("/x"))
        assert caught.value.param == "adapter_config.json"


async def test_kill_of_the_engine_fails_every_open_stream_and_call():
    async with _client("slow") as client:
        streams = [asyncio.create_task(_tokens(client, _request(str(i), 10_000))) for i in range(5)]
        await _until(lambda: client.stats.num_running == 5)
        call = asyncio.create_task(client.inspect_adapter("never", Path("/x")))
        await asyncio.sleep(0.2)
        os.kill(client._process._process.pid, signal.SIGKILL)
        async with asyncio.timeout(PATIENCE):
            results = await asyncio.gather(*streams, call, return_exceptions=True)
        assert [type(result) for result in results] == [EngineDead] * 6
        assert "exit code -9" in str(results[0])
        assert not client.alive
        with pytest.raises(EngineDead):
            await _tokens(client, _request())
        with pytest.raises(EngineDead):
            await client.release_adapter("x")


@pytest.mark.parametrize(("model", "message"), [("fails", "no such model"), ("crashes", "exit code 3")])
async def test_engine_that_cannot_start_says_why(model, message):
    with pytest.raises(EngineDead, match=message):
        async with _client(model):
            pass


async def test_what_is_no_message_ends_the_engine_not_the_server():
    async with _client("garbage") as client:
        await _until(lambda: not client.alive)
        with pytest.raises(EngineDead, match="language"):
            await _tokens(client, _request())


async def test_a_listener_that_fails_is_an_error_and_no_silence():
    async with _client("slow") as client:
        client.add_stats_listener(lambda stats: 1 / 0)
        with pytest.raises(EngineDead, match="ZeroDivisionError"):
            await _tokens(client, _request())


async def test_shutdown_ends_open_streams_and_the_process_and_can_be_repeated():
    client = LaunchedEngine(EngineConfig(model="slow"), _command)
    await client.start()
    stream = asyncio.create_task(_tokens(client, _request(max_tokens=10_000)))
    await _until(lambda: client.num_sequences == 1)
    process = client._process
    await client.shutdown()
    await client.shutdown()
    assert await process.wait() == 0
    with pytest.raises(EngineDead, match="shutting down"):
        await stream
    assert not client.alive


async def test_shutdown_does_not_wait_for_an_engine_that_still_loads():
    client = LaunchedEngine(EngineConfig(model="loads"), _command)
    await client.launch()
    async with asyncio.timeout(5):
        await client.shutdown()
    with pytest.raises(EngineDead, match="shutting down"):
        await client.start()
