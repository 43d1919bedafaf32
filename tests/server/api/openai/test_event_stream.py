import asyncio

import msgspec
import pytest

from peftserve.server.api.http.leaving import ClientGone, until_disconnect
from peftserve.server.api.openai.event_stream import TextFrames, frame


class _Client:
    """Its connection: who watches it is called by `leave`."""

    def watch(self, leave):
        self.leave = leave

    def unwatch(self):
        self.leave = None


async def test_work_that_ends_first_gives_its_result():
    async def work():
        await asyncio.sleep(0)
        return 5

    client = _Client()
    assert await until_disconnect(client, work()) == 5
    assert client.leave is None


async def test_errors_of_the_work_are_its_callers():
    async def work():
        raise KeyError("mine")

    with pytest.raises(KeyError):
        await until_disconnect(_Client(), work())


async def test_a_client_that_leaves_cancels_the_work_and_not_the_task():
    client, ended = _Client(), []

    async def work():
        try:
            client.leave()
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(ClientGone):
        await until_disconnect(client, work())
    assert ended == [True]
    await asyncio.sleep(0.001)
    assert asyncio.current_task().cancelling() == 0


async def test_a_task_that_is_cancelled_itself_is_cancelled():
    task = asyncio.create_task(until_disconnect(_Client(), asyncio.sleep(60)))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


class _Event(msgspec.Struct):
    index: int
    text: str
    model: str = 'the "text" itself'


def test_a_frame_is_one_event():
    assert frame(_Event(0, "a\nb")) == b'data: {"index":0,"text":"a\\nb","model":"the \\"text\\" itself"}\n\n'


def test_frames_from_a_template_are_those_of_the_struct_whatever_the_text():
    made = []

    def example(index, text):
        made.append(index)
        return _Event(index, text)

    frames = TextFrames(example)
    for text in ("", "a", '"\\/', "\n\r\t\0\x7f", "é😀\u2028", "</script>", '","text":"'):
        for index in range(3):
            assert frames(index, text) == frame(_Event(index, text))
    assert made == [0, 1, 2]
