"""/v1/adapters and /v1/default-adapter: uploads, cards, deletion, and what answers by default."""

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from msgspec import UNSET
from pydantic import Field

from peftserve.adapters.catalogue import Wanted, list_newest
from peftserve.adapters.errors import AdapterNotFound
from peftserve.adapters.names import Reference, parse_reference

from ..http.bodies import FRAMING, is_form, json_body
from ..http.leaving import CLIENT_GONE, ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..openai.answers import json_response
from ..openai.model_request import Body
from ..services import Services, ServicesOf
from ..sources.place import Place
from ..uploads.form import Received, receive_upload
from .cards import EXAMPLE, CardList, Deleted, State, make_card, make_cards
from .documentation import Operation

router = APIRouter(tags=["Adapters"])


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


class Settings(Body):
    """What is set for all versions of a name."""

    pinned: bool | None = Field(default=None, description="Never leaves the device.")
    ttl: float | None = Field(default=None, description="Seconds from the last upload or change to its deletion.")
    tags: list[str] | None = Field(default=None, max_length=32, description="Short texts to find it by.")
    metadata: dict[str, Any] | None = Field(default=None, description="An object of 16 KiB at most, for its owner.")

    def patch(self) -> dict[str, Any]:
        """Return the settings that were given, also those that are to be taken away."""
        return {name: getattr(self, name) for name in Settings.model_fields if name in self.model_fields_set}


class AddAdapter(Settings):
    """An adapter that the server gets from somewhere. Files are uploaded as a form instead."""

    name: str = Field(
        max_length=256, description="1 to 128 ASCII letters, digits, `.`, `_` or `-`, the first a letter or a digit."
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
        "pinned": {"type": "boolean", "description": "Never leaves the device."},
        "ttl": {"type": "number", "description": "Seconds from the last upload or change to its deletion."},
        "tags": {"type": "string", "description": "Tags with commas between, or a JSON list."},
        "metadata": {"type": "string", "description": "A JSON object of 16 KiB at most."},
        "files": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 2,
            "description": "`adapter_config.json` and `adapter_model.safetensors`, by these names; what is "
            "beside them in the folder may be sent, too.",
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
    errors=(403, 409),
)
async def add_adapter(request: Request, services: ServicesOf) -> Response:
    """Upload an adapter's files as a form, or let the server get them. A name that exists gets its next version, and
    keeps the settings that are not given.
    """
    services.model()
    services.admission.check_open()
    origin: dict[str, Any] | None = None
    async with services.staging() as staged:
        content_type = request.headers.get("content-type", "")
        if is_form(content_type):
            await asyncio.to_thread(_check_quota, services, None, _declared_bytes(request))
            name, settings = await receive_upload(content_type, request.stream(), staged)
        else:
            body = await json_body(AddAdapter)(request)
            name, settings = Received(body.name, body.patch())
            services.owned.library.check_name(name)
            await asyncio.to_thread(_check_quota, services, name, 0)
            place = Place(body.source.type, body.source.uri, body.source.revision)
            try:
                origin = await until_disconnect(request.scope[CONNECTION], services.sources.fetch(place, staged))
            except ClientGone:
                return Response(status_code=CLIENT_GONE)
        record = await services.owned.library.add(staged, name, origin=origin, settings=settings)
    services.owned.life.settings_changed()
    card = await make_card(services, record)
    card.skipped = staged.skipped or UNSET
    return json_response(card, 201)


@router.get("/v1/adapters")
@Operation("List adapters", CardList(data=[EXAMPLE]), errors=(400,))
async def list_adapters(
    services: ServicesOf,
    after: Annotated[str, Query(description="The last name of the page before.")] = "",
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="Most adapters to list; default: all.")] = None,
    tag: Annotated[list[str], Query(max_length=32, description="A tag that all have; may be given again.")] = [],  # noqa: B006
    method: Annotated[str | None, Query(description="PEFT's name of a method, such as `LORA`.")] = None,
    state: Annotated[State | None, Query(description="The fastest place that holds it.")] = None,
    name_prefix: Annotated[str, Query(description="How the name begins.")] = "",
) -> Response:
    """List the newest version of each adapter by name: all that are asked for, or `limit` of them behind the name
    `after`.
    """
    among, not_among = _in_state(services, state)
    wanted = Wanted(tag, method, name_prefix, after, among, not_among)
    records, has_more = await asyncio.to_thread(list_newest, services.owned.life.catalogue, wanted, limit)
    return json_response(CardList(data=await make_cards(services, records), has_more=has_more))


@router.get("/v1/adapters/{name:named}")
@Operation("Show an adapter", EXAMPLE, errors=(404,))
async def get_adapter(services: ServicesOf, name: Name) -> Response:
    """Return the card of an adapter's newest version, or of the version that is named."""
    reference = parse_name(name)
    record = services.adapters.registry.get(reference.name, reference.version)
    return json_response(await make_card(services, record))


@router.delete("/v1/adapters/{name:named}")
@Operation("Delete an adapter", Deleted(id="sql@2"), errors=(400, 404, 409))
async def delete_adapter(
    services: ServicesOf,
    name: Name,
    force: Annotated[bool, Query(description="Also if a route names it, which then answers 404.")] = False,
    purge: Annotated[bool, Query(description="At once, also what is kept to be restored.")] = False,
) -> Response:
    """Delete all versions of a name, or the one that is named. Requests that run finish on what they have."""
    reference = parse_name(name)
    await services.owned.library.delete(*reference, force=force, purge=purge)
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


def _in_state(services: Services, state: State | None) -> tuple[set[str] | None, set[str] | None]:
    """Return the digests that are in a state, and those that are not; None where all may be."""
    device, host = set(services.engine.stats.device_adapters), set(services.engine.stats.host_adapters)
    among = {"device": device, "host": host - device}.get(state or "")
    return among, device | host if state == "disk" else None


def _declared_bytes(request: Request) -> int:
    """Return how many bytes of files a form has at least, by its declared length."""
    declared = request.headers.get("content-length", "")
    return max(int(declared) - FRAMING, 0) if declared.isdigit() and len(declared) < 20 else 0


def _check_quota(services: Services, name: str | None, num_bytes: int) -> None:
    """Raise QuotaExceeded before anything is received, where it is known already."""
    actor = services.actor
    actor.quota.check_upload(services.adapters.registry, actor.owner, name, num_bytes)


def _default_name(services: Services) -> str | None:
    default = services.adapters.registry.get_default()
    if default is None:
        return None
    return default.name if default.version is None else f"{default.name}@{default.version}"


def parse_name(text: str) -> Reference:
    """Return what a path names. Raises AdapterNotFound for what can be no name."""
    reference = parse_reference(text)
    if reference is None:
        raise AdapterNotFound(f"there is no adapter {text[:140]!r}", param="name")
    return reference
