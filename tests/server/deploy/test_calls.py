"""What a replica is told that comes back with the engine of before: all that it has missed, and nothing twice."""

import asyncio

import pytest

from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.deploy.calls import Calls
from peftserve.server.deploy.engines import Engines
from peftserve.server.wire.messages import InspectAdapter, LoadAdapter, PinAdapters, ReleaseAdapter, Reply


class Told:
    """A replica that answers at once, unless its connection has ended."""

    def __init__(self, engine):
        self.engine = engine
        self.name = engine.name
        self.calls = []
        self.is_cut = False

    async def call(self, call):
        self.calls.append((type(call), call.digests if isinstance(call, PinAdapters) else call.digest))
        if self.is_cut:
            raise EngineDead("the connection has ended")
        return Reply(call.call_id)


class Fleet:
    """Replicas that come and go, and the calls to them."""

    def __init__(self):
        self.engines = Engines()
        self.ready = []
        self.calls = Calls(lambda: self.ready, lambda ready, _: ready[0], self.engines)

    async def come(self, name):
        """Return a replica, once it has been told what it has missed."""
        replica = Told(self.engines.come(name))
        self.ready.append(replica)
        self.calls.welcome(replica)
        await asyncio.gather(*self.calls._tasks)
        return replica

    def go(self, replica):
        self.ready.remove(replica)
        self.engines.go(replica.engine)

    async def make(self, *calls):
        for call in calls:
            answered = asyncio.get_running_loop().create_future()
            self.calls.begin(call, answered.set_result)
            assert (await answered).error is None


@pytest.fixture
async def fleet():
    return Fleet()


async def test_what_a_replica_has_missed_it_is_told_when_it_comes_back(fleet):
    replica = await fleet.come("a")
    await fleet.make(PinAdapters(1, ["x", "y"]))
    fleet.go(replica)
    await fleet.make(PinAdapters(2, []), ReleaseAdapter(3, "x"))
    assert (await fleet.come("a")).calls == [(ReleaseAdapter, "x"), (PinAdapters, [])]


async def test_what_it_has_confirmed_is_not_told_again(fleet):
    replica = await fleet.come("a")
    await fleet.make(ReleaseAdapter(1, "x"))
    fleet.go(replica)
    assert (await fleet.come("a")).calls == [(PinAdapters, [])]


async def test_what_a_cut_has_left_without_an_answer_is_told_again(fleet):
    replica = await fleet.come("a")
    replica.is_cut = True
    await fleet.make(ReleaseAdapter(1, "x"))
    fleet.go(replica)
    assert replica.calls[-1] == (ReleaseAdapter, "x")
    again = await fleet.come("a")
    assert again.calls == [(ReleaseAdapter, "x"), (PinAdapters, [])]
    assert not again.engine.unreleased


async def test_what_is_there_anew_is_not_released(fleet):
    fleet.go(await fleet.come("a"))
    await fleet.come("b")
    await fleet.make(*(ReleaseAdapter(number, digest) for number, digest in enumerate("wxyz")))
    await fleet.make(InspectAdapter(5, "x", "/x"), LoadAdapter(6, "y"), PinAdapters(7, ["z"]))
    assert (await fleet.come("a")).calls == [(ReleaseAdapter, "w"), (PinAdapters, ["z"])]


async def test_what_was_released_is_pinned_no_longer(fleet):
    await fleet.make(PinAdapters(1, ["x", "y"]), ReleaseAdapter(2, "x"))
    assert (await fleet.come("a")).calls == [(PinAdapters, ["y"])]
