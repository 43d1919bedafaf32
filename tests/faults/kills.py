"""kill -9, SIGSTOP, and clocks that jump, at random moments of uploads, deletions and answers."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

import httpx

from .subject import BASE, DEFAULT, PATIENCE, STAYING, Subject, ask, check_envelope, is_running, tokens, until

UPLOADERS = 3
ASKERS = 6
DAY = 86400

Kill = Callable[[Subject], Awaitable[None]]


class Traffic:
    """Clients that upload, delete, choose the default and ask, and take note of what was acknowledged.

    there, gone: names whose upload, or deletion, was acknowledged and nothing after that was asked for.
    """

    def __init__(self, subject: Subject, label: str) -> None:
        self._subject, self._label = subject, label
        self.there: set[str] = set()
        self.gone: set[str] = set()
        self.over = False

    async def run(self) -> None:
        """Go on until `over`. What ends a request is an error of the server's, or of the connection."""
        work = [*(self._operate(i) for i in range(UPLOADERS)), *(self._ask(i) for i in range(ASKERS))]
        await asyncio.gather(*work)

    async def _operate(self, number: int) -> None:
        turn, before = 0, None
        while not self.over:
            name, turn = f"{self._label}-{number}-{turn}", turn + 1
            try:
                async with self._subject.client() as client:
                    await self._live(client, name, before, turn % len(STAYING))
            except httpx.TransportError:
                await asyncio.sleep(0.05)  # nobody listens: the next server is starting
            before = name

    async def _live(self, client: httpx.AsyncClient, name: str, before: str | None, index: int) -> None:
        """Upload an adapter and delete the one before it."""
        uploaded = await self._subject.upload(client, name, index)
        check_envelope(uploaded, may_fail=True)
        if uploaded.status_code == 201:
            self.there.add(name)
        check_envelope(await client.put("/v1/default-adapter", json={"adapter": DEFAULT}), may_fail=True)
        if before is not None:
            self.there.discard(before)
            deleted = await client.delete(f"/v1/adapters/{before}")
            check_envelope(deleted, may_fail=True)
            if deleted.status_code == 200:
                self.gone.add(before)

    async def _ask(self, number: int) -> None:
        name = (BASE, *STAYING)[number % (1 + len(STAYING))]
        while not self.over:
            try:
                async with self._subject.client() as client:
                    answer = await ask(client, name, max_tokens=60)
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            check_envelope(answer, may_fail=True)
            if answer.status_code == 200:
                answers = self._subject.answers[name]
                assert tokens(answer)[: len(answers)] == answers, "a wrong answer while things die"


async def kill_engine(subject: Subject) -> None:
    """Kill the engine under requests, which have their error at once: the server starts another."""
    before = subject.server.engine_pid()
    async with subject.client() as client:
        asked = [asyncio.create_task(ask(client, BASE, max_tokens=240)) for _ in range(ASKERS)]
        await until(lambda: _are_running(subject, asked), "run requests")
        os.kill(before, signal.SIGKILL)
        died = time.monotonic()
        for answer in await asyncio.gather(*asked):
            check_envelope(answer, may_fail=True)
        subject.error_seconds.append(time.monotonic() - died)
    await until(lambda: _has_other_engine(subject, before), "start another engine")


async def kill_worker(subject: Subject) -> None:
    """Kill an API process beside the first: the server starts another."""
    workers = subject.workers()
    assert workers, "there is no worker"
    os.kill(workers[0], signal.SIGKILL)
    await until(lambda: _has_other_workers(subject, workers[0]), "start another worker")


async def kill_server(subject: Subject) -> None:
    """Kill the first process, as the out-of-memory killer does; what it has started has to end by itself."""
    engine, workers = subject.server.engine_pid(), subject.workers()
    subject.server.process.kill()
    await asyncio.to_thread(subject.server.process.wait)
    await until(lambda: _are_gone([engine, *workers]), "let its processes end with it")
    await asyncio.to_thread(subject.start)


async def kill_all(subject: Subject) -> None:
    """Kill all processes at once, as a machine that goes down."""
    for pid in (subject.server.process.pid, subject.server.engine_pid(), *subject.workers()):
        os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(subject.server.process.wait)
    await asyncio.to_thread(subject.start)


KILLS: tuple[Kill, ...] = (kill_engine, kill_worker, kill_all, kill_server)


async def kill(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Kill one process after the other under traffic. What was acknowledged is there, and nothing is half there."""
    for turn in range(rounds):
        one = KILLS[turn] if turn < len(KILLS) else draw.choice(KILLS)
        await _kill_under_traffic(subject, Traffic(subject, f"k{turn}"), one, draw.random())


async def _kill_under_traffic(subject: Subject, traffic: Traffic, kill: Kill, delay: float) -> None:
    """Let traffic begin, kill after so many seconds, and look at what is there."""
    running = asyncio.create_task(traffic.run())
    await until(lambda: _has_begun(traffic, running), "take uploads")
    await asyncio.sleep(delay)  # into the middle of anything
    await kill(subject)
    traffic.over = True
    async with asyncio.timeout(PATIENCE):
        await running
    await subject.check(there=traffic.there, gone=traffic.gone)
    await subject.clear()


async def pause(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Stop a process for a moment, as a debugger or a machine without time does. No request is lost."""
    for turn in range(rounds):
        pid = subject.server.engine_pid() if turn % 2 == 0 else subject.server.process.pid
        async with subject.client() as client:
            asked = [asyncio.create_task(ask(client, name, max_tokens=100)) for name in (BASE, *STAYING)]
            await asyncio.sleep(draw.random() / 10)
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(draw.random())
            os.kill(pid, signal.SIGCONT)
            for name, answer in zip((BASE, *STAYING), await asyncio.gather(*asked), strict=True):
                assert tokens(answer)[: len(subject.answers[name])] == subject.answers[name]
    await subject.check()


async def jump(subject: Subject, draw: random.Random, rounds: int) -> None:
    """Set the clock forward and back by days while requests run. What has a time to live lives as long as it may."""
    async with subject.client() as client:
        assert (await subject.upload(client, "mortal", 0)).status_code == 201
        assert (await client.patch("/v1/adapters/mortal", json={"ttl": 1000 * DAY})).status_code == 200
        for turn in range(rounds):
            asked = [asyncio.create_task(ask(client, name, max_tokens=100)) for name in (BASE, *STAYING)]
            subject.injector.set_clock((3, -3, 300, -300)[turn % 4] * DAY + draw.randrange(DAY))
            for answer in await asyncio.gather(*asked):
                tokens(answer)
            assert (await subject.upload(client, f"j{turn}", turn % len(STAYING))).status_code == 201
            assert (await client.get("/health")).status_code == 200
        await subject.check(there={"mortal", *(f"j{turn}" for turn in range(rounds))})
        subject.injector.set_clock(2000 * DAY)
        assert (await client.patch("/v1/adapters/a0", json={"tags": ["looked at"]})).status_code == 200  # wakes it
        await until(lambda: _is_gone(client, "mortal"), "delete what has lived for long enough")
    subject.injector.set_clock(0)
    await subject.check(gone={"mortal"})
    await subject.clear()


async def _has_begun(traffic: Traffic, running: "asyncio.Task[None]") -> bool:
    if running.done():
        running.result()
    return len(traffic.there | traffic.gone) >= UPLOADERS


async def _are_running(subject: Subject, asked: list["asyncio.Task[httpx.Response]"]) -> bool:
    running = await asyncio.to_thread(subject.server.metric, "peftserve_sequences_running")
    return running > 0 or all(task.done() for task in asked)


async def _has_other_engine(subject: Subject, before: int) -> bool:
    try:
        return subject.server.engine_pid() != before
    except (OSError, StopIteration):  # between two of them, or one that ends while it is looked at
        return False


async def _has_other_workers(subject: Subject, before: int) -> bool:
    return before not in subject.workers() and bool(subject.workers())


async def _are_gone(pids: list[int]) -> bool:
    return not any(is_running(pid) for pid in pids)


async def _is_gone(client: httpx.AsyncClient, name: str) -> bool:
    return (await client.get(f"/v1/adapters/{name}")).status_code == 404
