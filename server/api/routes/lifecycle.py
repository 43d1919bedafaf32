"""/v1/adapters/{name}: settings, a way back from a deletion, and loading ahead of use."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from ..http.bodies import json_body
from ..http.errors import bad_request, unavailable
from ..openai.answers import json_response
from ..services import ServicesOf
from .adapters import Name, Settings, parse_name
from .cards import EXAMPLE, CardList, make_card, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])


@router.patch("/v1/adapters/{name:named}")
@Operation(
    "Change an adapter's settings",
    EXAMPLE,
    body=Settings,
    examples={"Tags": {"tags": ["prod"], "metadata": {"team": "search"}}, "No end": {"ttl": None}},
    errors=(404,),
)
async def change_settings(
    services: ServicesOf, name: Name, body: Annotated[Settings, Depends(json_body(Settings))]
) -> Response:
    """Change what is set for a name, as a merge patch: what is null is taken away, what is left out stays. The time of
    `ttl` begins again.
    """
    reference = parse_name(name)
    if reference.version is not None:
        raise bad_request("Settings are of a name with all its versions: leave the version out.", "name")
    services.owned.library.check_settings(body.patch())
    if body.pinned:
        services.model()
        await services.owned.life.pins.try_out(reference.name)
    try:
        await services.owned.library.set(reference.name, body.patch())
    finally:
        services.owned.life.settings_changed()
    return json_response(await make_card(services, services.adapters.registry.get(reference.name)))


@router.post("/v1/adapters/{name:named}/restore")
@Operation("Restore a deleted adapter", CardList(data=[EXAMPLE]), errors=(403, 404, 409))
async def restore_adapter(services: ServicesOf, name: Name) -> Response:
    """Bring back all deleted versions of a name, or the one that is named, with their numbers. Only for as long as the
    server keeps them (`--keep-deleted`).
    """
    records = await services.owned.library.restore(*parse_name(name))
    return json_response(CardList(data=await make_cards(services, records)))


@router.post("/v1/adapters/{name:named}/load")
@Operation("Load an adapter ahead of use", EXAMPLE, errors=(404, 409))
async def load_adapter(services: ServicesOf, name: Name) -> Response:
    """Bring an adapter's newest version, or the one that is named, to the device. Others may need its room later: see
    `pinned`.
    """
    services.model()
    reference = parse_name(name)
    record = services.adapters.registry.get(*reference)
    if await services.load(record.ref) != "device":
        raise unavailable(
            f"Running requests take all room for adapters on the device; {record.ref} is in host memory.", "no_room"
        )
    return json_response(await make_card(services, record, "device"))
