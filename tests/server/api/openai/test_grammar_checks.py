"""Checks that wait for a thread, begin late, and are given up."""

import asyncio
import threading
from contextlib import asynccontextmanager

import pytest

from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.openai import grammar_checks
from peftserve.server.api.openai.grammar_checks import BEGINNING, SECONDS, run_check


@asynccontextmanager
async def taken_threads():
    """Both threads have work until the context is left."""
    barrier, done = threading.Barrier(3), threading.Event()

    def stay(is_over):
        barrier.wait(30)
        assert done.wait(30)

    slow = [asyncio.ensure_future(run_check(stay)) for _ in range(2)]
    await asyncio.to_thread(barrier.wait, 30)
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*slow)


async def test_the_time_of_a_check_begins_with_its_work(monkeypatch):
    now = 0.0
    monkeypatch.setattr(grammar_checks, "monotonic", lambda: now)
    seen = []

    def work(is_over):
        nonlocal now
        seen.append(is_over())
        now += BEGINNING
        seen.append(is_over())
        return "made"

    async with taken_threads():
        waiting = asyncio.ensure_future(run_check(work))
        await asyncio.sleep(0)  # it is queued
        now = 10 * SECONDS
    assert await waiting == "made"
    assert seen == [False, True]


async def test_what_only_waited_is_to_come_again_and_is_not_begun(monkeypatch):
    begun = []
    async with taken_threads():
        leaving = asyncio.ensure_future(run_check(lambda is_over: begun.append("left")))
        await asyncio.sleep(0)  # it is queued
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        monkeypatch.setattr(grammar_checks, "WAITING", 0)
        with pytest.raises(ApiError) as error:
            await run_check(lambda is_over: begun.append("late"))
        monkeypatch.undo()
    assert (error.value.status_code, error.value.body.code) == (429, "queue_full")
    assert error.value.headers == {"Retry-After": "1"}
    assert await run_check(lambda is_over: "next") == "next"
    assert begun == []


async def test_work_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(grammar_checks, "SECONDS", 0)
    end = threading.Event()
    with pytest.raises(TimeoutError):
        await run_check(lambda is_over: end.wait(30))
    end.set()
