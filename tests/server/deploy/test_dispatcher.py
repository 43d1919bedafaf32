"""Several engines are one to those who ask, and one that goes takes along what it had begun and nothing else."""

import asyncio
import contextlib
import signal
import socket

import pytest

from peftserve.adapters.errors import AdapterConflict, InvalidAdapter
from peftserve.server.api.engine.client import EngineClient
from peftserve.server.deploy.affinity import ReplicaState, homes
from peftserve.server.deploy.hello import Hello, say_hello
from peftserve.server.wire.faults import ReplicaLost
from peftserve.server.wire.messages import EngineStats, ModelInfo
from peftserve.server.wire.transport import encode
from tests.server.api.fake_engine_process import INFO
from tests.server.deploy.conftest import Reader, connect, request, until
from tests.server.deploy.local_fleet import PATIENCE
from tests.server.deploy.played_replica import PlayedReplica

TOKENS = [5, 6, 7, 5, 6, 7, 5, 6, 7, 5]


def at_home(fleet, name):
    """Return an adapter whose home is the replica of this name."""
    states = [ReplicaState(replica, 0) for replica in fleet.replicas]
    return next(digest for digest in map(str, range(100)) if homes(states, [digest])[0].name == name)


def running(fleet):
    return [replica.engine.stats.num_running for replica in fleet.replicas.values()]


async def is_closed(end):
    """Wait until the other end says something or closes. Returns whether it closes."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.to_thread(end.recv, 1) == b""
    return True


async def test_sequences_run_on_all_replicas_and_each_gets_its_own_tokens(dealing):
    async with dealing(2, "slow") as (client, fleet, _):
        readers = [Reader(client, request(str(i), i + 1)) for i in range(10)]
        await until(lambda: all(running(fleet)))
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(reader.ended for reader in readers))
        assert [reader.tokens for reader in readers] == [TOKENS[: i + 1] for i in range(10)]


async def test_clients_hear_of_their_own_and_one_that_leaves_aborts_its_own(dealing):
    async with dealing(2, "slow") as (client, fleet, door):
        other = EngineClient()
        await other.attach(connect(door))
        assert await other.loaded() == client.info
        own, others = Reader(client, request("a", 40)), Reader(other, request("b", 10_000))
        await until(lambda: own.tokens and others.tokens)
        other.leave()
        others.ended.exception()
        await until(lambda: sum(running(fleet)) == 1)
        async with asyncio.timeout(PATIENCE):
            await own.ended
        assert own.tokens == ([5, 6, 7] * 14)[:40]


async def test_an_abort_reaches_the_replica(dealing):
    async with dealing(1, "slow") as (client, fleet, _):
        reader = Reader(client, request("a", 10_000))
        await until(lambda: reader.tokens)
        client.abort("a")
        await until(lambda: running(fleet) == [0])
        assert not reader.ended.done()


async def test_an_adapter_stays_where_it_is(dealing):
    async with dealing(2, "slow") as (client, fleet, _):
        readers = [Reader(client, request(str(i), 10_000, ["adapter"])) for i in range(6)]
        await until(lambda: sorted(running(fleet)) == [0, 6])
        await until(lambda: client.stats.dealt == {"disk": 1, "device": 5})
        for i, reader in enumerate(readers):
            client.abort(str(i))
            assert not reader.ended.done()


async def test_a_replica_that_is_killed_takes_along_only_what_it_had_begun(dealing):
    async with dealing(2, "slow") as (client, fleet, _):
        first, second = (at_home(fleet, name) for name in fleet.replicas)
        theirs = [Reader(client, request(f"a{i}", 10_000, [first])) for i in range(3)]
        others = [Reader(client, request(f"b{i}", 60, [second])) for i in range(3)]
        await until(lambda: all(reader.tokens for reader in [*theirs, *others]))
        await fleet.replicas["replica-0"].kill()
        async with asyncio.timeout(PATIENCE):
            ends = await asyncio.gather(*(reader.ended for reader in [*theirs, *others]))
        assert [end.error_kind for end in ends] == ["ReplicaLost"] * 3 + [None] * 3
        assert all(reader.tokens == ([5, 6, 7] * 20) for reader in others)
        await until(lambda: client.stats.replicas == 1)


async def test_what_no_client_has_read_of_begins_anew_elsewhere(dealing):
    async with dealing(2) as (client, fleet, _):
        first = at_home(fleet, "replica-0")
        fleet.replicas["replica-0"].signal(signal.SIGSTOP)
        readers = [Reader(client, request(str(i), 10, [first])) for i in range(3)]
        async with asyncio.timeout(PATIENCE):  # one that comes behind them has ended, so they have been dealt out
            await Reader(client, request("b", 1, [at_home(fleet, "replica-1")])).ended
        assert not any(reader.ended.done() for reader in readers)
        await fleet.replicas["replica-0"].kill()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(reader.ended for reader in readers))
        assert [reader.tokens for reader in readers] == [TOKENS] * 3


async def test_what_ends_whatever_runs_it_does_not_go_through_all_replicas(dealing):
    async with dealing(3) as (client, fleet, door):
        for replica in fleet.replicas.values():
            replica.signal(signal.SIGSTOP)
        reader = Reader(client, request("a", 10, ["x"]))
        other = EngineClient()
        await other.attach(connect(door))  # who comes behind it is heard, so it has been dealt out
        await other.loaded()
        other.leave()
        order = homes([ReplicaState(name, 0) for name in fleet.replicas], ["x"])
        for left, replica in enumerate(order[:2]):  # the less busy of its homes is the first, both being idle
            assert not reader.ended.done()
            await fleet.replicas[replica.name].kill()
            await until(lambda left=left: client.stats.replicas == 2 - left)
        async with asyncio.timeout(PATIENCE):
            end = await reader.ended
        assert end.error_kind == "ReplicaLost"


async def test_an_adapter_that_ends_whatever_inspects_it_is_tried_once(dealing):
    async with dealing(2, "kills") as (client, _, _):
        with pytest.raises(ReplicaLost, match="has ended; try again"):
            await client.inspect_adapter("good", "/x")
        await until(lambda: client.stats.replicas == 1)
        assert (await Reader(client, request("a")).ended).error is None


async def test_without_replicas_requests_end_until_one_is_there_again(dealing):
    async with dealing(1) as (client, fleet, _):
        steps = client.stats.steps
        await fleet.replicas["replica-0"].kill()
        await until(lambda: client.stats.replicas == 0)
        async with asyncio.timeout(PATIENCE):
            end = await Reader(client, request("a")).ended
            inspected = asyncio.create_task(client.inspect_adapter("good", "/x"))
            await client.release_adapter("good")
            assert (end.error_kind, inspected.done()) == ("NoReplica", False)
            await fleet.add()
            assert (await inspected).rank == 8
            assert (await Reader(client, request("b")).ended).error is None
        assert client.alive
        await until(lambda: client.stats.replicas == 1)
        assert client.stats.steps >= steps, "counters do not go back"


async def test_calls_are_answered_by_one_or_by_all(dealing):
    async with dealing() as (client, fleet, _):
        assert (await client.inspect_adapter("good", "/x")).rank == 8
        assert await client.load_adapter("a") == "device"
        with pytest.raises(InvalidAdapter, match="rank is 0"):
            await client.release_adapter("bad")
        await client.release_adapter("good")
        with pytest.raises(AdapterConflict, match="1 adapters can be pinned"):
            await client.pin_adapters(["a", "b"])
        await fleet.add()
        await until(lambda: client.stats.replicas == 3)


async def test_a_replica_that_leaves_ends_what_it_runs_and_gets_no_more(dealing):
    async with dealing(2, "slow") as (client, fleet, _):
        first = at_home(fleet, "replica-0")
        reader = Reader(client, request("a", 20, [first]))
        await until(lambda: reader.tokens)
        leaving = asyncio.create_task(asyncio.to_thread(fleet.replicas["replica-0"].dialer.take_leave, PATIENCE))
        await until(lambda: client.stats.replicas == 1)
        later = Reader(client, request("b", 20, [first]))
        async with asyncio.timeout(PATIENCE):
            await leaving
            assert reader.ended.done()
            await later.ended
        assert (reader.tokens, later.tokens) == (([5, 6, 7] * 7)[:20],) * 2


async def test_what_one_that_leaves_runs_and_has_counted_is_there_until_it_has_gone(dealing):
    async with dealing(1) as (client, fleet, _):
        Reader(client, request("a"))
        await until(lambda: (client.stats.steps, client.stats.num_running) == (1, 1))  # and it says nothing more
        replica = PlayedReplica(fleet.target, "played")
        await replica.dial()
        replica.say(EngineStats(steps=5, num_running=2))
        await until(lambda: client.stats.num_running == 3)
        told = []
        client.add_stats_listener(lambda stats: told.append((stats.replicas, stats.steps, stats.num_running)))
        with replica.take_leave():
            await until(lambda: told)
        replica.hang_up()
        await until(lambda: told[-1][2] == 1)
        assert list(dict.fromkeys(told)) == [(1, 6, 3), (1, 6, 1)]


async def test_one_whose_connection_was_cut_is_told_what_it_has_missed(dealing):
    async with dealing(1) as (client, fleet, _):
        replica = PlayedReplica(fleet.target, "played")
        await replica.dial()
        assert (await replica.answer()).digests == []
        pinned = asyncio.create_task(client.pin_adapters(["a"]))
        assert (await replica.answer()).digests == ["a"]
        await pinned
        replica.hang_up()
        await until(lambda: client.stats.replicas == 1)
        await client.pin_adapters([])
        await client.release_adapter("a")
        await replica.dial()
        released, unpinned = await replica.answer(), await replica.answer()
        assert (released.digest, unpinned.digests) == ("a", [])


async def test_what_one_had_counted_before_its_connection_was_cut_is_not_counted_again(dealing):
    async with dealing(1) as (client, fleet, _):
        Reader(client, request("a"))
        await until(lambda: client.stats.steps == 1)
        replica = PlayedReplica(fleet.target, "played")
        for steps in (5, 7):
            await replica.dial()
            replica.say(EngineStats(steps=steps, kv_pages_total=1))
            await until(lambda: client.stats.kv_pages_total == 1)
            assert client.stats.steps == 1 + steps
            replica.hang_up()
            await until(lambda: client.stats.kv_pages_total == 0)
            assert client.stats.steps == 1 + steps


@pytest.mark.parametrize("secret", ["wrong", None])
async def test_strangers_are_sent_away(dealing, secret):
    async with dealing(1) as (client, fleet, _):
        with socket.create_connection((fleet.target.host, fleet.target.port), PATIENCE) as end:
            if secret is None:
                end.sendall(b"GET / HTTP/1.1\r\n\r\n")
            else:
                say_hello(end, Hello(secret, "mine"))
            assert await is_closed(end)
        assert client.stats.replicas == 1


async def test_another_model_is_no_replica(dealing):
    async with dealing(1) as (client, fleet, _):
        with socket.create_connection((fleet.target.host, fleet.target.port), PATIENCE) as end:
            say_hello(end, Hello(fleet.target.secret, "other"))
            other = ModelInfo(**{name: getattr(INFO, name) for name in INFO.__struct_fields__} | {"vocab_size": 7})
            end.sendall(encode(other))
            assert await is_closed(end)
        assert client.stats.replicas == 1
