import asyncio
import threading

import pytest

from peftserve.server.api.http.threads import to_the_end


async def test_who_is_cancelled_waits_for_the_thread():
    begun, may_end = threading.Event(), threading.Event()
    ended = []

    def work(number):
        begun.set()
        may_end.wait(10)
        ended.append(number)
        return number

    task = asyncio.create_task(to_the_end(work, 3))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended == [3]
    assert await to_the_end(work, 4) == 4
