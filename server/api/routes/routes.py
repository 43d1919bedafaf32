"""/v1/routes: names that stand for a policy; put, looked at and deleted."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response
from msgspec import Meta

from peftserve.adapters.routing.bodies import Body
from peftserve.adapters.routing.stored import Route

from ..http.bodies import read_bytes
from ..openai.answers import json_response
from ..services import Services, ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Routes"])

PAGE = 100  # a body may have a megabyte


class RouteCard(msgspec.Struct, kw_only=True):
    """A route. Beside these fields it has those of its body, as they were put."""

    name: str
    object: Literal["route"] = "route"
    version: Annotated[int, Meta(description="Counts up with each change of the name, from 1.")]
    created: Annotated[int, Meta(description="Unix time of this version in seconds.")]
    kind: Annotated[str, Meta(description="How it chooses, such as `split`.")]


class RouteList(msgspec.Struct, kw_only=True):
    """Routes by name."""

    object: Literal["list"] = "list"
    data: list[RouteCard]
    has_more: Annotated[bool, Meta(description="Whether there are names behind the last one.")] = False


class DeletedRoute(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["route"] = "route"
    deleted: bool = True


EXAMPLE = RouteCard(name="support", version=2, created=1_767_225_600, kind="alias")
BODIES: dict[str, dict[str, Any]] = {
    "Alias": {"kind": "alias", "target": "sql"},
    "Split": {
        "kind": "split",
        "arms": [{"target": "sql", "weight": 0.9}, {"target": "json", "weight": 0.1}],
        "sticky": "user",
    },
    "Mixture": {"kind": "mixture", "adapters": [{"name": "sql", "weight": 0.7}, {"name": "json", "weight": 0.3}]},
    "Fallback": {"kind": "fallback", "targets": ["sql", "json"]},
}

Name = Annotated[str, Path(description="A route's name.", examples=["support"])]
Force = Annotated[bool, Query(description="Also if a route names it.")]


@router.put("/v1/routes/{name:named}")
@Operation("Put a route", EXAMPLE, status=201, also={200: EXAMPLE}, struct_body=Body, examples=BODIES, errors=(409,))
async def put_route(request: Request, services: ServicesOf, name: Name) -> Response:
    """Make a route, or its next version in place of the last: 201 the first time, 200 after. Between two requests."""
    services.admission.check_open()
    body = await read_bytes(request)
    route, is_new = await asyncio.to_thread(services.owned.routes.put, name, body)
    return json_response(_card(route), 201 if is_new else 200)


@router.get("/v1/routes")
@Operation("List routes", RouteList(data=[EXAMPLE]), errors=(400,))
async def list_routes(
    services: ServicesOf,
    after: Annotated[str, Query(description="The last name of the page before.")] = "",
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="Most routes to list; default: all.")] = None,
) -> Response:
    """List routes by name: all of them, or `limit` of them behind the name `after`."""
    cards, has_more = await asyncio.to_thread(_read, services, after, limit)
    return json_response(msgspec.json.encode({"object": "list", "data": cards, "has_more": has_more}))


@router.get("/v1/routes/{name:named}")
@Operation("Show a route", EXAMPLE, errors=(404,))
async def get_route(services: ServicesOf, name: Name) -> Response:
    """Return a route's card."""
    return json_response(_card(services.adapters.routes.get(name)))


@router.delete("/v1/routes/{name:named}")
@Operation("Delete a route", DeletedRoute(id="support"), errors=(400, 404, 409))
async def delete_route(services: ServicesOf, name: Name, force: Force = False) -> Response:
    """Delete a route that no other names. A default that it was becomes the bare base."""
    await asyncio.to_thread(_delete, services, name, force)
    return json_response(DeletedRoute(id=name))


def _delete(services: Services, name: str, force: bool) -> None:
    services.owned.routes.delete(name, force=force)


def _read(services: Services, after: str, limit: int | None) -> tuple[list[msgspec.Raw], bool]:
    """Read cards in pages, so that look-ups for requests come in between. Returns whether there are more, too."""
    cards: list[msgspec.Raw] = []
    while page := services.adapters.routes.page(after=after, limit=PAGE):
        for route in page:
            if len(cards) == limit:
                return cards, True
            cards.append(msgspec.Raw(_card(route)))
        after = page[-1].name
    return cards, False


def _card(route: Route) -> bytes:
    """Return a route's card as JSON: the body as it was put, and what the registry knows of it."""
    fields: dict[str, Any] = msgspec.json.decode(route.text)
    card = RouteCard(name=route.name, version=route.version, created=int(route.created), kind=fields["kind"])
    return msgspec.json.encode({**msgspec.to_builtins(card), **fields})
