"""/v1/adapters/merge: a new adapter out of others."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field

from peftserve.adapters.merging.kinds import KINDS, MAX_SEED, MAX_SOURCES, MAX_SVD_RANK, MajoritySign, Options
from peftserve.adapters.registry_reader import AdapterRecord

from ..http.bodies import json_body
from ..jobs.jobs import Job
from ..merges import start_merge
from ..openai.answers import json_response
from ..openai.model_request import Body, MixtureMember
from ..services import ServicesOf
from .cards import EXAMPLE, Card, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])

MAX_WAIT = 3600


class MergeAdapters(Body):
    """A merge of adapters into a new one. Fields are called as in LoRAX and PEFT."""

    name: str = Field(max_length=256, description="The new adapter's name. One that exists gets its next version.")
    adapters: list[MixtureMember] = Field(min_length=1, max_length=MAX_SOURCES, description="Adapters with weights.")
    combination_type: str = Field(
        default="linear",
        max_length=64,
        description="How they are merged. Kinds with `_svd`, `svd`, `cat` and `knots` join different ranks.",
        json_schema_extra={"enum": [*KINDS]},
    )
    density: float = Field(default=0.5, gt=0, le=1, description="The share of entries that pruning keeps.")
    majority_sign_method: MajoritySign = Field(
        default="total", description="What elects a sign: the sum of the values, or the number of signs."
    )
    svd_rank: int | None = Field(
        default=None,
        ge=1,
        le=MAX_SVD_RANK,
        description="The result's rank, for kinds that choose it. Left out: the largest of all; the sum of all for "
        "`knots` and `slerp`.",
    )
    seed: int = Field(default=0, ge=0, le=MAX_SEED, description="The same seed gives the same adapter, byte for byte.")

    @property
    def options(self) -> Options:
        return Options(self.combination_type, self.density, self.majority_sign_method, self.svd_rank, self.seed)


QUEUED = Job(id="job-5f2c9a", kind="merge", created=1_767_225_600)


@router.post("/v1/adapters/merge")
@Operation(
    "Merge adapters",
    QUEUED,
    status=202,
    also={201: EXAMPLE},
    body=MergeAdapters,
    examples={
        "Ties": {
            "name": "both",
            "adapters": [{"name": "sql", "weight": 0.7}, {"name": "json", "weight": 0.3}],
            "combination_type": "ties",
            "density": 0.5,
        }
    },
    errors=(404, 409, 429),
)
async def merge_adapters(
    request: Request,
    services: ServicesOf,
    body: Annotated[MergeAdapters, Depends(json_body(MergeAdapters))],
    wait: Annotated[float, Query(ge=0, le=MAX_WAIT, description="Seconds to wait for the job's end.")] = 0,
) -> Response:
    """Merge adapters into a new one, as a job.

    With `wait`, the answer is the new adapter's card, or the job's error, if that was enough; else the job goes on.
    """
    services.model()
    services.admission.check_open()

    async def answer(record: AdapterRecord) -> Card:
        return (await make_cards(services, [record]))[0]

    weighted = [(member.name, member.weight) for member in body.adapters]
    job = await start_merge(services, body.name, weighted, body.options, answer)
    if wait:
        job = await services.owned.jobs.wait(job.id, wait)
    done = job.status == "succeeded"
    return json_response(job.result if done else job, 201 if done else 202)
