"""/v1/adapters and /v1/default-adapter: uploads, cards, deletion, and what answers by default."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import Field

from peftserve.adapters.errors import AdapterNotFound
from peftserve.adapters.names import Reference, check_name, parse_reference
from peftserve.adapters.registry_reader import AdapterRecord

from ..http.bodies import json_body
from ..http.leaving import CLIENT_GONE, ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..openai.answers import json_response
from ..openai.requests import Body
from ..services import Services, ServicesOf
from ..sources.place import Place
from ..uploads.form import receive_upload
from .cards import EXAMPLE, CardList, Deleted, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])

PAGE = 1000


class Source(Body):
    """A place from which the server gets an adapter's files itself, if its operator allows that."""

    type: Literal["path", "hub", "s3", "gs", "http"]
    uri: str = Field(
        min_length=1,
        max_length=4096,
        description="`owner/name` or `owner/name/folder` of a hub, `s3://bucket/folder`, `gs://bucket/folder`, "
        "`https://host/folder`, or a folder of the server below an allowed one.",
    )
    revision: str | None = Field(
        default=None, max_length=256, description="A hub's branch, tag or commit; it is pinned to the commit of now."
    )


class AddAdapter(Body):
    """An adapter that the server gets from somewhere. Files are uploaded as a form instead."""

    name: str = Field(
        max_length=256, description="1 to 128 letters, digits, `.`, `_` or `-`, the first a letter or a digit."
    )
    source: Source


class SetDefault(Body):
    """The choice of what answers requests that name no model, or `default`."""

    adapter: str | None = Field(max_length=256, description="A name, `name@version`, or null for the bare base.")


class DefaultAdapter(msgspec.Struct):
    """The adapter that answers by default."""

    adapter: Annotated[str | None, msgspec.Meta(description="A name, `name@version`, or null for the bare base.")]


FORM = {
    "type": "object",
    "required": ["name", "files"],
    "properties": {
        "name": {"type": "string", "maxLength": 256, "description": "The adapter's name."},
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 2,
            "description": "`adapter_config.json` and `adapter_model.safetensors`, by these names of the files.",
        },
    },
}
"""The schema of the form that `receive_upload` reads."""

Name = Annotated[str, Path(description="An adapter's name, or `name@version`.", examples=["sql"])]


@router.post("/v1/adapters")
@Operation(
    "Add an adapter",
    EXAMPLE,
    status=201,
    body=AddAdapter,
    form=FORM,
    examples={"Folder of the server": {"name": "sql", "source": {"type": "path", "uri": "/srv/adapters/sql"}}},
    errors=(409,),
)
async def add_adapter(request: Request, services: ServicesOf) -> Response:
    """Upload an adapter's files as a form, or let the server get them. A name that exists gets its next version."""
    services.model()
    services.admission.check_open()
    staged = await asyncio.to_thread(services.owned.store.stage, services.config.upload_limit)
    origin: dict[str, Any] | None = None
    with staged:
        content_type = request.headers.get("content-type", "")
        if content_type.lower().startswith("multipart/form-data"):
            name = await receive_upload(content_type, request.stream(), staged)
        else:
            body = await json_body(AddAdapter)(request)
            name = body.name
            check_name(name, {services.base_id})
            place = Place(body.source.type, body.source.uri, body.source.revision)
            try:
                origin = await until_disconnect(request.scope[CONNECTION], services.sources.fetch(place, staged))
            except ClientGone:
                return Response(status_code=CLIENT_GONE)
        record = await services.owned.library.add(staged, name, origin=origin)
    return json_response((await make_cards(services, [record]))[0], 201)


@router.get("/v1/adapters")
@Operation("List adapters", CardList(data=[EXAMPLE]), errors=(400,))
async def list_adapters(
    services: ServicesOf,
    after: Annotated[str, Query(description="The last name of the page before.")] = "",
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="Most adapters to list; default: all.")] = None,
) -> Response:
    """List the newest version of each adapter by name: all of them, or `limit` of them behind the name `after`."""
    records = await asyncio.to_thread(_read, services, after, limit)
    has_more = len(records) == limit and bool(services.adapters.registry.page(after=records[-1].name, limit=1))
    return json_response(CardList(data=await make_cards(services, records), has_more=has_more))


@router.get("/v1/adapters/{name}")
@Operation("Show an adapter", EXAMPLE, errors=(404,))
async def get_adapter(services: ServicesOf, name: Name) -> Response:
    """Return the card of an adapter's newest version, or of the version that is named."""
    reference = _reference(name)
    record = services.adapters.registry.get(reference.name, reference.version)
    return json_response((await make_cards(services, [record]))[0])


@router.delete("/v1/adapters/{name}")
@Operation("Delete an adapter", Deleted(id="sql@2"), errors=(400, 404, 409))
async def delete_adapter(
    services: ServicesOf,
    name: Name,
    force: Annotated[bool, Query(description="Also if a route names it, which then answers 404.")] = False,
) -> Response:
    """Delete all versions of a name, or the one that is named. Requests that run finish on what they have."""
    reference = _reference(name)
    await services.owned.library.delete(reference.name, reference.version, force=force)
    return json_response(Deleted(id=name))


@router.get("/v1/default-adapter")
@Operation("Show the default adapter", DefaultAdapter("sql"))
async def get_default(services: ServicesOf) -> Response:
    """Return what answers requests that name no model, or `default`."""
    return json_response(DefaultAdapter(_default_name(services)))


@router.put("/v1/default-adapter")
@Operation(
    "Set the default adapter",
    DefaultAdapter("sql"),
    body=SetDefault,
    examples={"Adapter": {"adapter": "sql"}, "Bare base": {"adapter": None}},
    errors=(404,),
)
async def set_default(services: ServicesOf, body: Annotated[SetDefault, Depends(json_body(SetDefault))]) -> Response:
    """Choose what answers by default, for the whole server, between two requests."""
    await services.owned.library.set_default(body.adapter)
    return json_response(DefaultAdapter(body.adapter))


def _read(services: Services, after: str, limit: int | None) -> list[AdapterRecord]:
    """Read in pages, so that look-ups for requests come in between."""
    records: list[AdapterRecord] = []
    while limit is None or len(records) < limit:
        wanted = PAGE if limit is None else min(PAGE, limit - len(records))
        page = services.adapters.registry.page(after=records[-1].name if records else after, limit=wanted)
        records += page
        if len(page) < wanted:
            break
    return records


def _default_name(services: Services) -> str | None:
    default = services.adapters.registry.get_default()
    if default is None:
        return None
    return default.name if default.version is None else f"{default.name}@{default.version}"


def _reference(text: str) -> Reference:
    reference = parse_reference(text)
    if reference is None:
        raise AdapterNotFound(f"there is no adapter {text[:140]!r}", param="name")
    return reference
