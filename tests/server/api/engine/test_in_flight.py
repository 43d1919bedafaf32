import asyncio

import pytest

from peftserve.server.api.engine.in_flight import InFlight


class Work:
    """Work that is let go of by hand. begun: how often it was begun."""

    def __init__(self) -> None:
        self.begun = 0
        self.result: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> int:
        self.begun += 1
        return await self.result


async def test_who_asks_meanwhile_waits_for_the_same_work() -> None:
    flights, work = InFlight[int](), Work()
    waiting = [asyncio.create_task(flights.run("a", work)) for _ in range(5)]
    other = asyncio.create_task(flights.run("b", work))
    await asyncio.sleep(0)
    waiting[0].cancel()
    await asyncio.sleep(0)
    work.result.set_result(7)
    assert await asyncio.gather(*waiting[1:], other) == [7] * 5
    assert waiting[0].cancelled()
    assert work.begun == 2
    assert await flights.run("a", work) == 7
    assert work.begun == 3


async def test_errors_reach_all_who_wait_and_nothing_stays() -> None:
    flights, work = InFlight[int](), Work()
    waiting = [asyncio.create_task(flights.run("a", work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.result.set_exception(ValueError("no"))
    assert [str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)] == ["no", "no"]
    with pytest.raises(ValueError, match="no"):
        await flights.run("a", work)
