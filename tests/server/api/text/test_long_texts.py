import asyncio
import threading

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.text.long_texts import LONG_TEXT, LONGEST_TEXT, MAX_WAITING, LongTexts


@pytest.fixture
def gate():
    """Keeps work waiting; opened at the end whatever happens."""
    opened = threading.Event()
    yield opened
    opened.set()


async def test_short_work_is_done_at_once_and_long_work_on_a_thread():
    texts = LongTexts()
    assert await texts.run(LONG_TEXT - 1, threading.get_ident) == threading.get_ident()
    long, longest = await texts.run(LONG_TEXT, threading.get_ident), await texts.run(LONGEST_TEXT, threading.get_ident)
    assert len({long, longest, threading.get_ident()}) == 3
    assert await texts.run(LONG_TEXT + 1, threading.get_ident) == long


async def test_the_longest_keep_only_their_like_waiting(gate):
    texts, done = LongTexts(), []

    async def run(length, work, name):
        await texts.run(length, work)
        done.append(name)

    first = asyncio.create_task(run(LONGEST_TEXT, gate.wait, "longest"))
    second = asyncio.create_task(run(LONGEST_TEXT, int, "behind it"))
    await asyncio.sleep(0)
    await run(LONG_TEXT, int, "long")
    await run(10, int, "short")
    assert done == ["long", "short"]
    gate.set()
    await asyncio.gather(first, second)
    assert done[2:] == ["longest", "behind it"]


async def test_a_lane_that_is_full_says_when_to_come_back(gate):
    texts = LongTexts()
    first = asyncio.create_task(texts.run(MAX_WAITING + 1, gate.wait))  # one alone is always taken
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="too many long texts") as caught:
        await texts.run(LONGEST_TEXT, int)
    assert (caught.value.status_code, caught.value.headers) == (429, {"Retry-After": "1"})
    assert await texts.run(LONG_TEXT, int) == 0
    gate.set()
    await first
    assert await texts.run(LONGEST_TEXT, int) == 0


async def test_what_the_work_raises_comes_back():
    with pytest.raises(ZeroDivisionError):
        await LongTexts().run(LONG_TEXT, lambda: 1 // 0)
