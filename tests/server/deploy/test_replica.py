"""What is known of a replica's memory: what it says, and what it was given since."""

import asyncio
import socket

import pytest

from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.deploy.engines import Engine
from peftserve.server.deploy.replica import Replica
from peftserve.server.wire.messages import EngineStats, InspectAdapter, Reply
from peftserve.server.wire.transport import encode
from tests.server.deploy.conftest import request


class NoSink:
    def push(self, output):
        pass

    def fail(self, death):
        pass


@pytest.fixture
async def replica():
    heard = []
    replica = Replica(Engine("replica"), lambda _, event: heard.append(event), lambda _: None)
    replica.heard = heard
    return replica


async def test_what_it_was_given_is_on_its_device_until_it_says_otherwise(replica):
    replica.submit(request("a", adapters=["x"]), NoSink())
    assert (replica.state.sequences, set(replica.state.device)) == (1, {"x"})
    replica._heard(EngineStats(device_adapters=["y"], host_adapters=["z"]))
    assert set(replica.state.device) == {"x", "y"}, "it runs there"
    assert set(replica.state.host) == {"z"}
    replica.forget("a")
    replica._heard(EngineStats(device_adapters=["y"], host_unchanged=True))
    assert (replica.state.sequences, set(replica.state.device)) == (0, {"y"})
    assert set(replica.state.host) == {"z"}
    assert len(replica.heard) == 2


async def test_what_ended_since_the_last_word_still_counts(replica):
    replica.submit(request("a", adapters=["x"]), NoSink())
    replica.forget("a")
    replica._heard(EngineStats())  # sent before
    assert set(replica.state.device) == {"x"}
    replica._heard(EngineStats())
    assert not replica.state.device


@pytest.fixture
async def engine(replica):
    """Return the engine's end of the replica's connection."""
    ours, theirs = socket.socketpair()
    await replica.open(ours)
    with theirs:
        yield theirs


async def test_it_is_not_idle_before_it_has_answered_all_calls(replica, engine):
    calls = [asyncio.create_task(replica.call(InspectAdapter(number, "x", "/x"))) for number in (1, 2)]
    for number in (1, 2):
        await asyncio.sleep(0)
        assert not replica._idle.is_set()
        engine.sendall(encode(Reply(number)))
        await calls[number - 1]
    await replica.idle()


async def test_a_call_that_its_end_leaves_unanswered_is_none_to_wait_for(replica, engine):
    call = asyncio.create_task(replica.call(InspectAdapter(1, "x", "/x")))
    await asyncio.sleep(0)
    replica.close("it has gone")
    with pytest.raises(EngineDead):
        await call
    await replica.idle()


async def test_it_is_idle_when_the_last_sequence_has_ended(replica):
    await replica.idle()
    for name in "ab":
        replica.submit(request(name), NoSink())
    replica.forget("a")
    assert not replica._idle.is_set()
    replica.forget("b")
    replica.forget("b")
    await replica.idle()
    assert replica.state.sequences == 0
