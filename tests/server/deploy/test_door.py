"""Who comes through the door hears all that is said from then on, be its connection open yet or not."""

import asyncio
import contextlib
import socket

import msgspec
import pytest

from peftserve.server.deploy.door import Door
from peftserve.server.wire.messages import EngineStats, Event, ModelInfo
from peftserve.server.wire.transport import Connection
from tests.server.api.fake_engine_process import INFO
from tests.server.deploy.local_fleet import PATIENCE


@contextlib.asynccontextmanager
async def _coming(door):
    """One who comes, and whose connection is not open before what is in the block waits."""
    ours, theirs = socket.socketpair()
    coming = asyncio.ensure_future(door._add(ours))
    await asyncio.sleep(0)
    assert not coming.done()
    connection = Connection(theirs)
    try:
        yield connection
    finally:
        await coming
        door.close()
        connection.close(0)


async def _heard_before_the_end(connection):
    heard = []
    decode = msgspec.msgpack.Decoder(Event).decode
    async with asyncio.timeout(PATIENCE):
        while connection.open:
            heard += [decode(message) for message in connection.receive()]
            await asyncio.sleep(0.001)
    return heard


@pytest.mark.parametrize("known_before", [True, False])
async def test_the_model_is_said_once_and_first(known_before):
    door = Door(lambda client, command: None, lambda client: None)
    if known_before:
        door.send(INFO)
    async with _coming(door) as connection:
        if not known_before:
            door.send(INFO)
        door.send(EngineStats(num_running=3))
        door.close()
        assert [type(event) for event in await _heard_before_the_end(connection)] == [ModelInfo, EngineStats]
    assert not door.clients
