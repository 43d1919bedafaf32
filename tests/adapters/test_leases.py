import asyncio

import pytest

from peftserve.adapters.leases import Leases
from peftserve.adapters.names import VersionRef
from peftserve.adapters.resolved import Member, Resolved

A, B = (VersionRef(name, 1, name * 64) for name in "ab")
MIXTURE = Resolved((Member(A, 0.5), Member(B, 0.5)), "a+b", "a+b")
ALONE = Resolved((Member(A, 1.0),), "a@1", "a")


async def test_idle_waits_for_the_last_request() -> None:
    leases = Leases()
    leases.acquire(MIXTURE)
    leases.acquire(ALONE)
    assert (leases.count(A.digest), leases.count(B.digest), leases.count("c")) == (2, 1, 0)
    waiting = asyncio.create_task(leases.idle(A.digest))
    leases.release(MIXTURE)
    await leases.idle(B.digest)
    await asyncio.sleep(0)
    assert not waiting.done()
    leases.check_integrity()
    leases.release(ALONE)
    await waiting
    leases.check_integrity()


async def test_idle_waits_on_if_it_was_taken_again_in_between() -> None:
    leases = Leases()
    leases.acquire(ALONE)
    waiting = asyncio.create_task(leases.idle(A.digest))
    await asyncio.sleep(0)
    leases.release(ALONE)
    leases.acquire(ALONE)
    for _ in range(3):
        await asyncio.sleep(0)
    assert not waiting.done()
    leases.release(ALONE)
    await waiting


async def test_who_gives_up_waiting_disturbs_nobody() -> None:
    leases = Leases()
    leases.acquire(ALONE)
    tasks = [asyncio.create_task(leases.idle(A.digest)) for _ in range(2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    await asyncio.sleep(0)
    leases.release(ALONE)
    await tasks[1]
    assert tasks[0].cancelled()


def test_released_too_often_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Leases().release(ALONE)


def test_the_base_takes_no_lease() -> None:
    leases = Leases()
    leases.acquire(Resolved((), "demo", "demo"))
    leases.check_integrity()
