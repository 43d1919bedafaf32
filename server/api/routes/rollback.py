"""POST /v1/adapters/{name}/rollback: an older version's content, the newest again."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field

from ..http.bodies import read_bytes
from ..openai.answers import json_response
from ..openai.model_request import Body
from ..services import ServicesOf
from .cards import EXAMPLE, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])


class RollBack(Body):
    """The version to go back to. The body may be left out."""

    to: int | None = Field(
        default=None, ge=1, lt=1 << 63, description="Its number; null or left out: the one before the newest."
    )


@router.post("/v1/adapters/{name:named}/rollback")
@Operation(
    "Roll an adapter back",
    EXAMPLE,
    status=201,
    body=RollBack,
    examples={"By one": {"to": None}},
    errors=(404,),
)
async def roll_back(
    request: Request, services: ServicesOf, name: Annotated[str, Path(description="Its name.", examples=["sql"])]
) -> Response:
    """Make an older version's content the newest again: a new number, the same digest."""
    services.admission.check_open()
    body = RollBack.model_validate_json(await read_bytes(request) or b"{}")
    record = await services.owned.library.roll_back(name, body.to)
    return json_response((await make_cards(services, [record]))[0], 201)
