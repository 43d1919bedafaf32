"""/v1/adapters and /v1/default-adapter: uploads, cards, deletion, and what answers by default."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from msgspec import UNSET
from pydantic import Field

from peftserve.adapters.errors import AdapterNotFound
from peftserve.adapters.names import Reference, parse_reference
from peftserve.adapters.registry_reader import AdapterRecord

from ..http.bodies import json_body
from ..openai.answers import json_response
from ..openai.requests import Body
from ..openai.responses import Card, CardList, DefaultAdapter, Deleted
from ..services import Services, ServicesOf
from ..uploads.form import receive_upload
from ..uploads.sources import fetch

router = APIRouter()

PAGE = 1000


class Source(Body):
    type: Literal["path", "hub", "s3"]
    uri: str = Field(min_length=1, max_length=4096)
    revision: str | None = Field(default=None, max_length=256)


class AddAdapter(Body):
    name: str = Field(max_length=256)
    source: Source


class SetDefault(Body):
    """adapter: a name, `name@version`, or null for the bare base."""

    adapter: str | None = Field(max_length=256)


@router.post("/v1/adapters")
async def add_adapter(request: Request, services: ServicesOf) -> Response:
    services.model()
    services.admission.check_open()
    staged = await asyncio.to_thread(services.owned.store.stage, services.config.upload_limit)
    with staged:
        content_type = request.headers.get("content-type", "")
        if content_type.lower().startswith("multipart/form-data"):
            name = await receive_upload(content_type, request.stream(), staged)
        else:
            body = await json_body(AddAdapter)(request)
            name = body.name
            await fetch(services, body.source.type, body.source.uri, staged)
        record = await services.owned.library.add(staged, name)
    return json_response((await _cards(services, [record]))[0], 201)


@router.get("/v1/adapters")
async def list_adapters(
    services: ServicesOf, after: str = "", limit: Annotated[int | None, Query(ge=1, le=100_000)] = None
) -> Response:
    """The newest version of each, by name; all of them, or `limit` of them behind the name `after`."""
    records = await asyncio.to_thread(_read, services, after, limit)
    has_more = len(records) == limit and bool(services.adapters.registry.page(after=records[-1].name, limit=1))
    return json_response(CardList(data=await _cards(services, records), has_more=has_more))


@router.get("/v1/adapters/{name}")
async def get_adapter(services: ServicesOf, name: str) -> Response:
    reference = _reference(name)
    record = services.adapters.registry.get(reference.name, reference.version)
    return json_response((await _cards(services, [record]))[0])


@router.delete("/v1/adapters/{name}")
async def delete_adapter(services: ServicesOf, name: str) -> Response:
    """Of a name all versions, of `name@2` the one. Requests that run finish on what they have."""
    reference = _reference(name)
    await services.owned.library.delete(reference.name, reference.version)
    return json_response(Deleted(id=name))


@router.get("/v1/default-adapter")
async def get_default(services: ServicesOf) -> Response:
    return json_response(DefaultAdapter(_default_name(services)))


@router.put("/v1/default-adapter")
async def set_default(services: ServicesOf, body: Annotated[SetDefault, Depends(json_body(SetDefault))]) -> Response:
    await services.owned.library.set_default(body.adapter)
    return json_response(DefaultAdapter(body.adapter))


def _read(services: Services, after: str, limit: int | None) -> list[AdapterRecord]:
    """In pages, so that look-ups for requests come in between."""
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


async def _cards(services: Services, records: Sequence[AdapterRecord]) -> list[Card]:
    running = await services.owned.requests_running()
    stats = services.engine.stats
    device, host = set(stats.device_adapters), set(stats.host_adapters)
    return [
        Card(
            id=record.name,
            name=record.name,
            version=record.version,
            digest=record.digest,
            method=record.facts.method,
            rank=record.facts.rank,
            size=record.facts.num_bytes,
            primitives=dict(record.facts.primitives),
            modules=record.facts.sites,
            tensors=record.facts.consumed,
            virtual_tokens=record.facts.virtual_tokens or UNSET,
            num_tasks=record.facts.num_tasks or UNSET,
            state="device" if record.digest in device else "host" if record.digest in host else "disk",
            requests_running=running[record.digest],
            created=int(record.created),
            error=services.owned.library.damaged.get(record.digest, UNSET),
        )
        for record in records
    ]
