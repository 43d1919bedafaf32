"""/v1/jobs: work that goes on in the background, how far it is, and its end."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Response

from ..jobs.jobs import Job
from ..openai.answers import json_response
from ..services import ServicesOf
from .cards import EXAMPLE as CARD
from .documentation import Operation

router = APIRouter(tags=["Jobs"])


class JobList(msgspec.Struct, kw_only=True):
    """The jobs, the newest first."""

    object: Literal["list"] = "list"
    data: list[Job]


EXAMPLE = Job(id="job-5f2c9a", kind="merge", status="succeeded", progress=1.0, result=CARD, created=1_767_225_600)

Id = Annotated[str, Path(description="A job's id.", examples=["job-5f2c9a"])]


@router.get("/v1/jobs")
@Operation("List jobs", JobList(data=[EXAMPLE]))
async def list_jobs(services: ServicesOf) -> Response:
    """List the jobs that wait and run, and the last thousand that have ended."""
    return json_response(JobList(data=services.owned.jobs.list()))


@router.get("/v1/jobs/{id}")
@Operation("Show a job", EXAMPLE, errors=(404,))
async def get_job(services: ServicesOf, id: Id) -> Response:
    """Return a job: how far it is, and once it has ended its result or its error."""
    return json_response(services.owned.jobs.find(id))


@router.delete("/v1/jobs/{id}")
@Operation("Cancel a job", EXAMPLE, errors=(404,))
async def cancel_job(services: ServicesOf, id: Id) -> Response:
    """End a job and return it. One that has ended, or is about to, stays what it is."""
    return json_response(await services.owned.jobs.cancel(id))
