import asyncio
import socket

import msgspec
import pytest

from peftserve.server.wire.framing import framed
from peftserve.server.wire.transport import Channel, Connection, encode

PATIENCE = 60.0


class _Listener:
    def __init__(self):
        self.heard = []
        self.ended = asyncio.get_running_loop().create_future()
        self.channel = Channel(msgspec.msgpack.Decoder(str), self.heard.append, self.ended.set_result)


@pytest.fixture
async def ends():
    """An event loop's end and a thread's of one connection."""
    ours, theirs = socket.socketpair()
    listener, connection = _Listener(), Connection(theirs)
    await listener.channel.open(ours)
    yield listener, connection
    listener.channel.close()
    connection.close(0)


async def _receive(connection, count):
    received = []
    async with asyncio.timeout(PATIENCE):
        while len(received) < count:
            received += [msgspec.msgpack.decode(message) for message in connection.receive()]
            await asyncio.sleep(0.001)
    return received


async def test_messages_arrive_whole_and_in_order_both_ways(ends):
    listener, connection = ends
    listener.channel.send("a")
    listener.channel.send("b" * 1_000_000)
    listener.channel.send("c")
    assert await _receive(connection, 3) == ["a", "b" * 1_000_000, "c"]
    connection.send(encode("x"))
    connection.send(encode("y"))
    async with asyncio.timeout(PATIENCE):
        while len(listener.heard) < 2:
            await asyncio.sleep(0.001)
    assert listener.heard == ["x", "y"]


async def test_a_sender_never_blocks_on_an_end_that_does_not_read(ends):
    listener, connection = ends
    for number in range(20_000):  # far beyond the kernel's buffers
        connection.send(encode(str(number) * 50))
    assert connection.has_unsent
    async with asyncio.timeout(PATIENCE):
        while len(listener.heard) < 20_000:
            connection.flush()
            await asyncio.sleep(0)
    assert listener.heard == [str(number) * 50 for number in range(20_000)]
    assert not connection.has_unsent


async def test_what_was_sent_before_the_end_is_heard_before_it(ends):
    listener, connection = ends
    connection.send(encode("last"))
    connection.close(1)
    assert await asyncio.wait_for(listener.ended, PATIENCE) is None
    assert listener.heard == ["last"]
    listener.channel.send("to nobody")


async def test_an_end_that_has_gone_is_seen(ends):
    listener, connection = ends
    listener.channel.send("last")
    listener.channel.close()
    assert await _receive(connection, 1) == ["last"]
    while connection.open:
        assert connection.receive() == []
        await asyncio.sleep(0.001)
    connection.send(encode("to nobody"))


async def _open_later(before):
    """Do something with an event loop's end, and only then open it; return it, with a thread's end."""
    ours, theirs = socket.socketpair()
    listener, connection = _Listener(), Connection(theirs)
    before(listener.channel)
    await listener.channel.open(ours)
    return listener, connection


async def test_what_is_sent_while_the_connection_opens_goes_ahead_of_what_comes_later():
    def before(channel):
        channel.send("a")
        channel.send("b" * 1_000_000)

    listener, connection = await _open_later(before)
    listener.channel.send("c")
    assert await _receive(connection, 3) == ["a", "b" * 1_000_000, "c"]
    listener.channel.close()
    await asyncio.wait_for(listener.ended, PATIENCE)
    connection.close(0)


async def test_a_connection_that_is_closed_while_it_opens_closes_behind_what_was_sent_before():
    def before(channel):
        channel.send("last")
        channel.close()
        channel.send("to nobody")

    listener, connection = await _open_later(before)
    assert await asyncio.wait_for(listener.ended, PATIENCE) is None
    assert await _receive(connection, 1) == ["last"]
    assert connection.receive() == []
    assert not connection.open
    connection.close(0)


async def test_what_is_no_message_ends_the_connection_with_the_reason(ends):
    listener, connection = ends
    connection.send(framed(b"\xc1"))
    assert isinstance(await asyncio.wait_for(listener.ended, PATIENCE), msgspec.MsgspecError)
