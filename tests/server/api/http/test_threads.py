import asyncio
import contextlib
import threading

import pytest

from peftserve.server.api.http.threads import entered, to_the_end


async def cancelled_amid(task, begun, may_end):
    """Cancel a task while its thread works, for which it waits all the same."""
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.sleep(0.01)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_waits_for_the_thread():
    begun, may_end = threading.Event(), threading.Event()
    ended = []

    def work(number):
        begun.set()
        may_end.wait(10)
        ended.append(number)
        return number

    task = asyncio.create_task(to_the_end(work, 3))
    await cancelled_amid(task, begun, may_end)
    assert ended == [3]
    assert await to_the_end(work, 4) == 4


async def test_who_is_cancelled_while_a_thread_makes_a_context_leaves_it():
    begun, may_end = threading.Event(), threading.Event()
    seen = []

    @contextlib.contextmanager
    def held(number):
        seen.append(f"in {number}")
        try:
            yield number
        finally:
            seen.append(f"out {number}")

    def make(number):
        begun.set()
        may_end.wait(10)
        return held(number)

    async def use(number):
        async with entered(make, number) as got:
            seen.append(got)

    task = asyncio.create_task(use(3))
    await cancelled_amid(task, begun, may_end)
    assert seen == ["in 3", "out 3"]
    await use(4)
    assert seen[2:] == ["in 4", 4, "out 4"]
