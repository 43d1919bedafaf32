"""The supervision of other processes, with links that are a few lines."""

import asyncio

import pytest

from peftserve.adapters.leases import Leases
from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.metrics.totals import summed
from peftserve.server.api.processes import pool
from peftserve.server.api.processes.link import WorkerGone
from peftserve.server.api.processes.pool import SharedLeases, WorkerPool
from peftserve.server.wire.control import AwaitIdle, Serve, WorkerStats


class _Link:
    """Serves at once, and is idle when `leave` is called or it has gone."""

    def __init__(self, leases=(), counted=0, serves=True):
        self.gone = asyncio.Event()
        self.idle = asyncio.Event()
        self.told = []
        self.stats = WorkerStats()
        self._now = WorkerStats(dict.fromkeys(leases, 1), [], {"requests": [("requests_total", {}, float(counted))]})
        self._serves = serves

    async def call(self, make):
        call = make(1)
        self.told.append(call)
        if isinstance(call, Serve) and self._serves:
            return
        waiting = [asyncio.create_task(event.wait()) for event in (self.gone, self.idle)]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self.gone.is_set():
            raise WorkerGone

    async def fetch_stats(self):
        if not self.gone.is_set():
            self.stats = self._now
            return self.stats
        return WorkerStats()

    def tell_to_stop(self):
        self.gone.set()

    async def end(self, patience):
        self.gone.set()


@pytest.fixture
async def run():
    """Makes `WorkerPool` out of links, in the order in which they are to be started; all serve when it returns."""
    running = []

    async def run(count, links, ended=lambda number: None):
        left = iter(links)

        async def start(number):
            return next(left)

        running.append(WorkerPool(count, start, ended))
        running[-1].launch()
        await asyncio.wait_for(running[-1].serve(), 60)
        return running[-1]

    yield run
    for workers in running:
        await workers.stop(0)


async def test_of_none_nothing_is_waited_for(run):
    workers = await run(0, [])
    await workers.idle("d")
    await workers.drain()
    assert (await workers.stats(), await workers.holds("d"), workers.past) == ([], False, {})


async def test_an_adapter_is_idle_when_every_process_says_so_or_has_gone(run, until):
    links = [_Link(), _Link()]
    workers = await run(2, [*links, _Link()])
    leases = SharedLeases(Leases(), workers)
    waiting = asyncio.create_task(leases.idle("d"))
    await until(lambda: all(link.told[-1] == AwaitIdle(1, "d") for link in links))
    links[0].idle.set()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    links[1].gone.set()
    await asyncio.wait_for(waiting, 60)


async def test_an_adapter_is_held_when_any_process_holds_it(run):
    leases = SharedLeases(Leases(), await run(2, [_Link(), _Link(leases="d")]))
    assert await leases.is_held("d")
    assert not await leases.is_held("e")


async def test_one_that_ends_is_replaced_and_what_it_counted_stays(run, until):
    links, ended = [_Link(counted=5), _Link(counted=2)], []
    workers = await run(1, links, ended.append)
    assert [one.samples for one in await workers.stats()] == [{"requests": [("requests_total", {}, 5.0)]}]
    links[0].gone.set()
    await until(lambda: links[1].told)
    assert ended == [1]
    assert [one.samples for one in await workers.stats()] == [{"requests": [("requests_total", {}, 2.0)]}]
    assert workers.past == {"requests": [("requests_total", {}, 5.0)]}


async def test_what_one_that_ends_during_a_look_had_counted_is_counted_once(run, until):
    ending, slow = _Link(counted=5), _Link(counted=2)
    workers = await run(2, [ending, slow, _Link()])
    await workers.stats()
    answer, fetch = asyncio.Event(), slow.fetch_stats

    async def fetch_slowly():
        await answer.wait()
        return await fetch()

    slow.fetch_stats = fetch_slowly
    looking = asyncio.create_task(workers.stats())
    await asyncio.sleep(0)
    ending.gone.set()
    await until(lambda: workers.past)
    answer.set()
    counted = summed([*(one.samples for one in await looking), workers.past])
    assert counted == {"requests": [("requests_total", {}, 7.0)]}


async def test_where_another_cannot_be_started_it_is_tried_until_it_can(until, monkeypatch, caplog):
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.001)
    links = [_Link(), BlockingIOError("no process more"), EngineDead("it is started again"), _Link()]
    left = iter(links)

    async def start(number):
        link = next(left)
        if isinstance(link, Exception):
            raise link
        return link

    workers = WorkerPool(1, start, lambda number: None)
    workers.launch()
    await asyncio.wait_for(workers.serve(), 60)
    links[0].gone.set()
    await until(lambda: links[-1].told)
    await workers.stop(0)
    assert caplog.text.count("could not be started, and is tried again") == 2


async def test_whoever_ends_soon_is_replaced_ever_later_up_to_a_longest_pause(until, monkeypatch):
    links, pauses, sleep = [_Link()], [], asyncio.sleep

    async def start(number):
        links.append(_Link())
        return links[-1]

    async def pause(seconds):
        pauses.append(seconds)
        await sleep(0)

    workers = WorkerPool(1, start, lambda number: None)
    workers.launch()
    await asyncio.wait_for(workers.serve(), 60)
    monkeypatch.setattr(pool, "SHORT_LIFE", float("inf"))
    monkeypatch.setattr(pool.asyncio, "sleep", pause)
    for _ in range(9):
        (link,) = links[-1:]
        link.gone.set()
        while links[-1] is link:
            await sleep(0)
    monkeypatch.undo()
    await workers.stop(0)
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


async def test_one_that_ends_before_it_serves_fails_the_start(run):
    link = _Link(serves=False)
    link.gone.set()
    with pytest.raises(OSError, match="API process 1 has ended"):
        await run(1, [link])
