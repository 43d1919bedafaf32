"""The jobs of a server: a few run, some wait their turn, and those that have ended are remembered for a while.

Knows nothing of what a job does: it is given a function, and tells how that went. A job lives in the primary process
and ends with it.
"""

import asyncio
import copy
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from peftserve.adapters.ownership import SERVER, Actor

from ..http.errors import RETRY_SECONDS, ApiError, ErrorBody, translate

logger = logging.getLogger(__name__)

MAX_RUNNING, MAX_QUEUED, MAX_KEPT = 2, 64, 1000
OWN_QUEUED = 2  # of each who asks, whoever else has all places of the queue

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class Job(msgspec.Struct, kw_only=True):
    """One job, as clients see it."""

    id: str
    object: Literal["job"] = "job"
    kind: Annotated[str, Meta(description="What it does: `merge`.")]
    status: Status = "queued"
    progress: Annotated[float, Meta(ge=0, le=1, description="The part that is done.")] = 0.0
    result: Annotated[Any, Meta(description="What came out, once it has succeeded: the new adapter's card.")] = None
    error: Annotated[ErrorBody | None, Meta(description="Why it has failed, if it has.")] = None
    created: Annotated[int, Meta(description="Unix time in seconds.")]


class Ticket:
    """A job as its own function sees it."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self.committing = False

    def progress(self, part: float) -> None:
        """Tell the part that is done, from 0 to 1."""
        self._job.progress = min(1.0, max(self._job.progress, part))

    def commit(self) -> None:
        """Say that what comes now may not be broken off: who cancels the job waits for its end instead."""
        self.committing = True


Work = Callable[[Ticket], Awaitable[Any]]


class _Entry:
    """A job with what runs it. owner: who asked for it. fault: the answer to who waits for it, if it has failed."""

    def __init__(self, job: Job, owner: str) -> None:
        self.job = job
        self.owner = owner
        self.ticket = Ticket(job)
        self.fault: ApiError | None = None
        self.task: asyncio.Task[Any]  # set by submit()


class Jobs:
    """All jobs of a server, on its event loop.

    running, queued: how many may be at once. kept: how many are remembered after their end.
    """

    def __init__(self, running: int = MAX_RUNNING, queued: int = MAX_QUEUED, kept: int = MAX_KEPT) -> None:
        self._entries: dict[str, _Entry] = {}
        self._ended: deque[str] = deque()
        self._turns = asyncio.Semaphore(running)
        self._max_queued = queued
        self._max_kept = kept
        self._actor = SERVER

    def acting_for(self, actor: Actor) -> "Jobs":
        """Return the same jobs, as far as they are those of `actor`; an administrator's are all."""
        jobs = copy.copy(self)
        jobs._actor = actor
        return jobs

    def submit(self, kind: str, work: Work, ended: Callable[[], None]) -> Job:
        """Put a job in the queue. work: its result is the job's. ended: is called once, however the job ends.

        Raises ApiError 429, and then `ended` is not called.
        """
        self._check_room()
        job = Job(id=f"job-{secrets.token_hex(12)}", kind=kind, created=int(time.time()))
        entry = self._entries[job.id] = _Entry(job, self._actor.owner)
        entry.task = asyncio.create_task(self._run(entry, work), name=job.id)
        entry.task.add_done_callback(lambda _: self._end(entry, ended))
        return job

    def find(self, job_id: str) -> Job:
        """Return a job. Raises ApiError 404."""
        return self._entry(job_id).job

    def list(self) -> list[Job]:
        """Return all jobs that are remembered, the newest first."""
        return [entry.job for entry in reversed(self._entries.values()) if self._is_mine(entry)]

    async def wait(self, job_id: str, seconds: float) -> Job:
        """Wait for a job's end for so many seconds at most. Raises ApiError: 404, or what the job has failed with."""
        entry = self._entry(job_id)
        await asyncio.wait({entry.task}, timeout=seconds)
        if entry.fault is not None:
            raise entry.fault
        return entry.job

    async def cancel(self, job_id: str) -> Job:
        """End a job, and return it when it has ended; one that is nearly done ends by itself. Raises ApiError 404."""
        entry = self._entry(job_id)
        if not entry.ticket.committing:
            entry.task.cancel()
        await asyncio.wait({entry.task})
        return entry.job

    async def close(self) -> None:
        """End all jobs, and return when nothing of them runs."""
        tasks = [entry.task for entry in self._entries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, entry: _Entry, work: Work) -> Any:
        async with self._turns:
            entry.job.status = "running"
            return await work(entry.ticket)

    def _end(self, entry: _Entry, ended: Callable[[], None]) -> None:
        job, task = entry.job, entry.task
        if task.cancelled():
            job.status = "cancelled"
        elif (error := task.exception()) is None:
            job.status, job.progress, job.result = "succeeded", 1.0, task.result()
        else:
            self._fail(entry, error)
        self._forget_old(job.id)
        ended()

    def _fail(self, entry: _Entry, error: BaseException) -> None:
        entry.fault = translate(error) if isinstance(error, Exception) else translate(RuntimeError())
        entry.job.status, entry.job.error = "failed", entry.fault.body
        if entry.fault.body.code == "internal_error":
            logger.error("Job %s (%s) met an unexpected error", entry.job.id, entry.job.kind, exc_info=error)

    def _forget_old(self, job_id: str) -> None:
        self._ended.append(job_id)
        while len(self._ended) > self._max_kept:
            del self._entries[self._ended.popleft()]

    def _entry(self, job_id: str) -> _Entry:
        entry = self._entries.get(job_id)
        if entry is None or not self._is_mine(entry):
            raise ApiError(
                404,
                f"There is no job {job_id[:80]!r}; jobs end with the server, and old ones are forgotten.",
                param="id",
                code="job_not_found",
            )
        return entry

    def _is_mine(self, entry: _Entry) -> bool:
        return self._actor.is_admin or entry.owner == self._actor.owner

    def _check_room(self) -> None:
        queued = [entry.owner for entry in self._entries.values() if entry.job.status == "queued"]
        waiting, own = len(queued), queued.count(self._actor.owner)
        if waiting >= self._max_queued and (own >= OWN_QUEUED or waiting >= 2 * self._max_queued):
            raise ApiError(
                429,
                f"{waiting} jobs are waiting already; try again later.",
                code="queue_full",
                headers={"Retry-After": str(RETRY_SECONDS)},
            )
