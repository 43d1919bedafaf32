"""GET /v1/models: the base, each adapter with the base as its parent, its own prefix off the context length; routes."""

import asyncio
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Response
from msgspec import Meta

from peftserve.adapters.names import DEFAULT
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.routing.stored import Route

from ..openai.answers import json_response
from ..openai.resolution import resolve
from ..services import Services, ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Models"])

PAGE = 1000
ROUTES_PAGE = 100  # a body may have a megabyte


class _Named(msgspec.Struct):
    """The part of a route's body that says what it is."""

    kind: str
    target: str = ""


class Model(msgspec.Struct, kw_only=True):
    """A model, adapter or route that the `model` field of a request may name."""

    id: str
    object: Literal["model"] = "model"
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    owned_by: Annotated[str, Meta(description="`route` for a route.")] = "peftserve"
    root: Annotated[
        str, Meta(description="An adapter's digest, the base's id, what an alias names, or another route's kind.")
    ]
    parent: Annotated[str | None, Meta(description="The base of an adapter or a route.")] = None
    max_model_len: Annotated[int, Meta(description="Most tokens of prompt and answer together.")]


class ModelList(msgspec.Struct, kw_only=True):
    """The base, the newest version of each adapter by name, and the routes by name."""

    object: Literal["list"] = "list"
    data: list[Model]


EXAMPLE = Model(id="sql", created=1_767_225_600, root="9f86d081884c7d65", parent="demo", max_model_len=2048)


@router.get("/v1/models")
@Operation("List models", ModelList(data=[EXAMPLE]))
async def list_models(services: ServicesOf) -> Response:
    """List the base by each of its names, the newest version of each adapter by name, and the routes by name."""
    models = [_base(services, name) for name in (services.base_id, *services.config.other_model_names)]
    after = ""
    while records := await asyncio.to_thread(services.adapters.registry.page, after=after, limit=PAGE):
        models += [_adapter(services, record.name, record) for record in records]
        after = records[-1].name
    after = ""
    while routes := await asyncio.to_thread(services.adapters.routes.page, after=after, limit=ROUTES_PAGE):
        models += [_route(services, route) for route in routes]
        after = routes[-1].name
    return json_response(ModelList(data=models))


@router.get("/v1/models/{model_id:path}")
@Operation("Show a model", EXAMPLE, errors=(404,))
async def get_model(
    services: ServicesOf,
    model_id: Annotated[str, Path(description="As in the `model` field of a request.", examples=["sql"])],
) -> Response:
    """Return what a request that names this model would be answered by, or a route without asking it."""
    name = _default(services) if model_id == DEFAULT else model_id
    if name in services.base_ids:
        return json_response(_base(services, name))
    route = services.adapters.routes.find(name)
    if route is not None:
        return json_response(_route(services, route))
    ref = (await resolve(services, name)).members[0].ref
    shown = str(ref) if model_id == DEFAULT else model_id
    return json_response(_adapter(services, shown, services.adapters.registry.get(ref.name, ref.version)))


def _default(services: Services) -> str:
    default = services.adapters.registry.get_default()
    if default is None:
        return services.base_id
    return default.name if default.version is None else f"{default.name}@{default.version}"


def _base(services: Services, name: str) -> Model:
    return Model(
        id=name,
        created=services.started,
        root=services.base_id,
        max_model_len=services.model().max_model_len,
    )


def _adapter(services: Services, name: str, record: AdapterRecord) -> Model:
    return Model(
        id=name,
        created=int(record.created),
        root=record.digest,
        parent=services.base_id,
        max_model_len=max(services.model().max_model_len - record.facts.virtual_tokens, 0),
    )


def _route(services: Services, route: Route) -> Model:
    named = msgspec.json.decode(route.text, type=_Named)
    return Model(
        id=route.name,
        created=int(route.created),
        owned_by="route",
        root=named.target or named.kind,
        parent=services.base_id,
        max_model_len=services.model().max_model_len,
    )
