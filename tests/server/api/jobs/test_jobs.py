"""Jobs without anything to do: their order, their ends, and what is remembered."""

import asyncio
import logging
from typing import Any

import pytest

from peftserve.adapters.errors import InvalidAdapter
from peftserve.server.api.http.errors import ApiError
from peftserve.server.api.jobs.jobs import Jobs, Ticket


class Script:
    """Work that waits to be let go. ended: how often each job has been."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.tickets: list[Ticket] = []
        self.ended: list[str] = []

    async def work(self, ticket: Ticket) -> str:
        self.tickets.append(ticket)
        await self.go.wait()
        return "done"

    def submit(self, jobs: Jobs, work: Any = None) -> Any:
        return jobs.submit("test", work or self.work, lambda: self.ended.append("x"))


async def test_few_run_the_others_wait_and_too_many_are_refused() -> None:
    jobs, script = Jobs(running=2, queued=3, kept=4), Script()
    made = []
    for _ in range(5):
        made.append(script.submit(jobs))
        await asyncio.sleep(0)
    assert [job.status for job in made] == ["running", "running", "queued", "queued", "queued"]
    with pytest.raises(ApiError) as refused:
        script.submit(jobs)
    assert (refused.value.status_code, refused.value.body.code) == (429, "queue_full")
    assert refused.value.headers == {"Retry-After": "1"}
    assert script.ended == []
    script.tickets[0].progress(0.5)
    script.tickets[0].progress(0.25)
    assert made[0].progress == 0.5

    last = await jobs.cancel(made[4].id)  # one that has never run
    assert (last.status, script.ended) == ("cancelled", ["x"])
    script.go.set()
    assert [(await jobs.wait(job.id, 5)).status for job in made[:4]] == ["succeeded"] * 4
    assert (made[0].progress, made[0].result) == (1.0, "done")
    assert len(script.ended) == 5
    assert jobs.list() == [made[3], made[2], made[1], made[0]]  # the one that ended first is forgotten
    with pytest.raises(ApiError) as gone:
        jobs.find(made[4].id)
    assert (gone.value.status_code, gone.value.body.code) == (404, "job_not_found")
    assert (await jobs.cancel(made[0].id)).status == "succeeded"


async def test_a_wait_ends_with_the_error_that_the_job_has(caplog: pytest.LogCaptureFixture) -> None:
    jobs, script = Jobs(), Script()

    async def refuse(ticket: Ticket) -> None:
        raise InvalidAdapter("no such thing", param="x")

    async def break_down(ticket: Ticket) -> None:
        raise KeyError("/secret/path")

    bad = script.submit(jobs, refuse)
    with pytest.raises(ApiError) as error:
        await jobs.wait(bad.id, 5)
    assert (error.value.status_code, bad.status, bad.error) == (400, "failed", error.value.body)
    with caplog.at_level(logging.CRITICAL):
        worse = script.submit(jobs, break_down)
        with pytest.raises(ApiError) as error:
            await jobs.wait(worse.id, 5)
    assert error.value.status_code == 500
    assert "secret" not in worse.error.message
    slow = script.submit(jobs)
    assert (await jobs.wait(slow.id, 0.001)).status == "running"
    await jobs.close()
    assert (slow.status, len(script.ended)) == ("cancelled", 3)


async def test_what_is_nearly_done_is_not_broken_off() -> None:
    jobs, script = Jobs(), Script()

    async def commit(ticket: Ticket) -> str:
        ticket.commit()
        return await script.work(ticket)

    job = script.submit(jobs, commit)
    while not script.tickets:
        await asyncio.sleep(0)
    cancelling = asyncio.create_task(jobs.cancel(job.id))
    await asyncio.sleep(0.01)
    assert not cancelling.done()
    script.go.set()
    assert (await cancelling).status == "succeeded"
