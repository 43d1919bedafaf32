import asyncio
import itertools
import time

import pytest

from peftserve.server.api.http.clock import Timeouts
from peftserve.server.api.http.connection_counts import counts_of_one
from peftserve.server.api.http.connections import (
    MAX_SPARE,
    ConnectionLimits,
    OpenConnections,
    Place,
)
from peftserve.server.api.processes.shared_counts import shared_counts, view_of_connections

ALWAYS = frozenset({b"/health"})


class _Connection:
    def __init__(self, connections, address="10.0.0.1"):
        self.address = address
        self.gave_way = False
        self.looks = []
        self.place = connections.enter(self)
        self._connections = connections

    def give_way(self):
        self.gave_way = True

    def leave(self):
        self._connections.leave(self)

    def look(self, now):
        self.looks.append(now)
        if self.address == "bad":
            raise ValueError(now)


def busy(connections, **fields):
    connection = _Connection(connections, **fields)
    connections.busy(connection)
    return connection


def test_who_waits_longest_gives_way_and_who_has_a_request_does_not():
    connections = OpenConnections(ConnectionLimits(connections=3))
    first, second, third = busy(connections), _Connection(connections), _Connection(connections)
    connections.idle(first)
    connections.busy(second)
    assert _Connection(connections).place is Place.FULL
    assert [one.gave_way for one in (first, second, third)] == [False, False, True]
    third.leave()
    assert _Connection(connections).place is Place.FULL
    assert first.gave_way


def test_beyond_the_limit_there_are_a_few_places_for_what_is_open_to_all():
    connections = OpenConnections(ConnectionLimits(connections=1), always=ALWAYS)
    held = busy(connections)
    spare = [_Connection(connections) for _ in range(MAX_SPARE + 1)]
    assert {one.place for one in spare} == {Place.SPARE}
    assert [one.gave_way for one in spare] == [True] + [False] * MAX_SPARE
    assert not held.gave_way
    for one in [held, *spare]:
        one.leave()
        one.leave()  # once is enough
    assert _Connection(connections).place is Place.FULL
    assert connections.is_open_to_all(b"/health?x")
    assert not connections.is_open_to_all(b"/healthy")


def test_where_nothing_is_open_to_all_there_is_no_place():
    connections = OpenConnections(ConnectionLimits(connections=1))
    busy(connections)
    assert _Connection(connections).place is Place.NONE


def test_no_limit():
    connections = OpenConnections(ConnectionLimits(connections=0))
    assert {busy(connections).place for _ in range(5000)} == {Place.FULL}


def test_one_address_has_its_share_and_a_network_of_ipv6_is_one():
    connections = OpenConnections(ConnectionLimits(connections=0, per_address=2), always=ALWAYS)
    for address in ("10.0.0.1", "::ffff:10.0.0.1"):
        held = _Connection(connections, address=address)
        assert held.place is Place.FULL
    assert _Connection(connections, address="10.0.0.1").place is Place.SPARE_OF_ADDRESS
    for host in (1, 2):
        assert _Connection(connections, address=f"2001:db8::{host}").place is Place.FULL
    assert _Connection(connections, address="2001:db8::3").place is Place.SPARE_OF_ADDRESS
    assert _Connection(connections, address="2001:db8:0:1::1").place is Place.FULL
    assert _Connection(connections, address="not an address").place is Place.FULL
    held.leave()
    assert _Connection(connections, address="10.0.0.1").place is Place.SPARE_OF_ADDRESS  # the spare one counts too


def test_processes_count_together_and_one_that_ends_is_forgotten():
    with shared_counts(2) as file:
        limits = ConnectionLimits(connections=3, per_address=2)
        first, second = (OpenConnections(limits, view_of_connections(file, own)) for own in (0, 1))
        busy(first, address="10.0.0.1")
        busy(second, address="10.0.0.1")
        assert _Connection(first, address="10.0.0.1").place is Place.NONE
        busy(second, address="10.0.0.2")
        assert _Connection(first, address="10.0.0.3").place is Place.NONE
        view_of_connections(file).forget(1)
        assert _Connection(first, address="10.0.0.1").place is Place.FULL
        assert view_of_connections(file).total == 2


def test_counts_come_back_to_nothing():
    counts = counts_of_one()
    connections = OpenConnections(ConnectionLimits(connections=2, per_address=1), counts, always=ALWAYS)
    held = [_Connection(connections, address=f"10.0.0.{i % 3}") for i in range(9)]
    for one in held:
        one.leave()
    assert counts.total == 0
    assert all(counts.of(f"10.0.0.{i}") == 0 for i in range(3))


async def test_all_are_looked_at_also_beside_one_that_fails(until):
    connections = OpenConnections(ConnectionLimits(timeouts=Timeouts(headers=0.04)))
    looked_at = [_Connection(connections, address=address) for address in ("bad", "good")]
    gone = _Connection(connections)
    gone.leave()
    watching = asyncio.create_task(connections.watch())
    await until(lambda: len(looked_at[1].looks) > 1)
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching
    assert gone.looks == []


async def test_time_in_which_nobody_looked_does_not_count(until):
    """As when this process has itself been stopped: what came meanwhile is not read yet."""
    timeouts = Timeouts(headers=0.04)
    connections = OpenConnections(ConnectionLimits(timeouts=timeouts))
    looks = _Connection(connections).looks
    watching = asyncio.create_task(connections.watch())
    for _ in range(2):
        before = len(looks)
        time.sleep(20 * timeouts.pause)  # stops all there is in this process
        await until(lambda before=before: len(looks) > before)
    watching.cancel()
    assert all(0 < later - now <= 2.01 * timeouts.pause for now, later in itertools.pairwise(looks))
