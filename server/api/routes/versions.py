"""GET /v1/adapters/{name}/versions: all that there is of a name."""

import asyncio

from fastapi import APIRouter, Response

from ..http.errors import bad_request
from ..openai.answers import json_response
from ..services import ServicesOf
from .adapters import Name, parse_name
from .cards import EXAMPLE, CardList, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])


@router.get("/v1/adapters/{name:named}/versions")
@Operation("List an adapter's versions", CardList(data=[EXAMPLE]), errors=(400, 404))
async def list_versions(services: ServicesOf, name: Name) -> Response:
    """List the versions of a name that are there, the newest first."""
    reference = parse_name(name)
    if reference.version is not None:
        raise bad_request("Versions are of a name: leave the version out.", "name")
    services.adapters.registry.get(reference.name)
    records = await asyncio.to_thread(services.adapters.registry.versions, reference.name)
    return json_response(CardList(data=await make_cards(services, records[::-1])))
