"""A replica whose engine a test plays: it says what the test says, and keeps what it hears."""

import asyncio
import socket

import msgspec

from peftserve.server.deploy.hello import Hello, say_hello
from peftserve.server.wire.messages import Command, Reply
from peftserve.server.wire.transport import Channel
from tests.server.api.fake_engine_process import INFO
from tests.server.deploy.local_fleet import PATIENCE


class PlayedReplica:
    """target: where it dials, as often as it is told to."""

    def __init__(self, target, name):
        self._target = target
        self._name = name
        self._heard = asyncio.Queue()

    async def dial(self):
        self._channel = Channel(msgspec.msgpack.Decoder(Command), self._heard.put_nowait, lambda _: None)
        await self._channel.open(self._connect(leaving=False))
        self.say(INFO)

    def say(self, event):
        self._channel.send(event)

    async def answer(self):
        """Answer the next call, and return it."""
        async with asyncio.timeout(PATIENCE):
            call = await self._heard.get()
        self.say(Reply(call.call_id))
        return call

    def hang_up(self):
        self._channel.close()

    def take_leave(self):
        """Return a connection that ends when it may."""
        return self._connect(leaving=True)

    def _connect(self, leaving):
        end = socket.create_connection((self._target.host, self._target.port), PATIENCE)
        say_hello(end, Hello(self._target.secret, self._name, leaving))
        return end
