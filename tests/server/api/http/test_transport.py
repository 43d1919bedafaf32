import asyncio

from peftserve.server.api.http.transport import JoinedWrites


class _Transport:
    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(data)

    def close(self):
        self.calls.append("close")

    def is_closing(self):
        return "close" in self.calls


async def test_what_is_written_in_one_turn_is_one_write():
    transport = _Transport()
    joined = JoinedWrites(transport, asyncio.get_running_loop())
    joined.write(b"head")
    joined.write(b"body")
    assert transport.calls == []
    await asyncio.sleep(0)
    joined.write(b"next")
    await asyncio.sleep(0)
    assert transport.calls == [b"headbody", b"next"]


async def test_closing_sends_what_was_written_before_and_nothing_twice():
    transport = _Transport()
    joined = JoinedWrites(transport, asyncio.get_running_loop())
    joined.write(b"last")
    assert not joined.is_closing()
    joined.close()
    await asyncio.sleep(0)
    assert transport.calls == [b"last", "close"]
    assert joined.is_closing()
