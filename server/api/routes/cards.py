"""Cards: the public description of an adapter, put together from the registry, the engine and the requests."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from peftserve.adapters.ownership import tenant_of
from peftserve.adapters.registry_reader import AdapterRecord
from peftserve.adapters.settings import Settings
from peftserve.adapters.stored_settings import NOTHING_SET, Stored

from ..services import Services

State = Literal["disk", "host", "device"]


class Card(msgspec.Struct, kw_only=True):
    """One version of an adapter."""

    id: str
    object: Literal["adapter"] = "adapter"
    name: str
    version: Annotated[int, Meta(description="Counts up with each upload of the name, from 1.")]
    digest: Annotated[str, Meta(description="SHA-256 of the adapter's files.")]
    method: Annotated[str, Meta(description="PEFT's name of the method, such as `LORA`.")]
    rank: Annotated[int, Meta(description="The highest rank of any module; 0 where the method has none.")]
    size: Annotated[int, Meta(description="Bytes in the device's memory.")]
    primitives: Annotated[dict[str, int], Meta(description="Kind of bypass to the number of modules that have it.")]
    modules: Annotated[int, Meta(description="Modules of the base that the adapter changes.")]
    tensors: Annotated[int, Meta(description="Tensors of the files that are served, but for `unused`.")]
    notes: Annotated[
        list[str] | UnsetType, Meta(description="What of the files has no effect here, as it has none in PEFT.")
    ] = UNSET
    unused: Annotated[
        list[str] | UnsetType,
        Meta(description="Modules that it has tensors for and no text passes, such as a vision tower's."),
    ] = UNSET
    virtual_tokens: Annotated[
        int | UnsetType, Meta(description="Positions of the context that the adapter takes, if any.")
    ] = UNSET
    num_tasks: Annotated[int | UnsetType, Meta(description="Tasks to choose from with `task_id`, if any.")] = UNSET
    state: Annotated[State, Meta(description="The fastest place that holds it.")]
    requests_running: int
    origin: Annotated[
        dict[str, Any] | UnsetType, Meta(description="Where it came from, if not from an upload; never a secret.")
    ] = UNSET
    created: Annotated[int, Meta(description="Unix time in seconds.")]
    owner: Annotated[str | UnsetType, Meta(description="The tenant whose it is, if it is not everybody's.")] = UNSET
    pinned: Annotated[bool | UnsetType, Meta(description="Whether the name never leaves the device.")] = UNSET
    ttl: Annotated[float | UnsetType, Meta(description="Seconds from the last upload or change to its end.")] = UNSET
    expires_at: Annotated[int | UnsetType, Meta(description="When the name is deleted; Unix time in seconds.")] = UNSET
    tags: Annotated[list[str] | UnsetType, Meta(description="Short texts to find it by.")] = UNSET
    metadata: Annotated[dict[str, Any] | UnsetType, Meta(description="What its owner has noted.")] = UNSET
    skipped: Annotated[
        list[str] | UnsetType,
        Meta(description="In the answer to an upload: names of files that were sent and are not kept."),
    ] = UNSET
    error: Annotated[str | UnsetType, Meta(description="Why it cannot be read from the disk, if it cannot.")] = UNSET


class CardList(msgspec.Struct, kw_only=True):
    """Cards by name."""

    object: Literal["list"] = "list"
    data: list[Card]
    has_more: Annotated[bool, Meta(description="Whether there are names behind the last one.")] = False


class Deleted(msgspec.Struct, kw_only=True):
    """The answer to a deletion."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: bool = True


EXAMPLE = Card(
    id="sql",
    name="sql",
    version=2,
    digest="9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    method="LORA",
    rank=8,
    size=147_456,
    primitives={"low_rank": 28},
    modules=28,
    tensors=56,
    state="device",
    requests_running=3,
    created=1_767_225_600,
)


async def make_card(services: Services, record: AdapterRecord, state: State | None = None) -> Card:
    """Return the card of a version. state: where it is, if that is known better than by the newest statistics."""
    stored = services.owned.library.settings.of([record.name])
    (card,) = await _cards(services, [record], stored)
    card.state = state or card.state
    return card


async def make_cards(services: Services, records: Sequence[AdapterRecord]) -> list[Card]:
    """Return the card of each of many versions, with the requests of all API processes."""
    stored = await asyncio.to_thread(services.owned.life.settings.of, [record.name for record in records])
    return await _cards(services, records, stored)


async def _cards(services: Services, records: Sequence[AdapterRecord], stored: Mapping[str, Stored]) -> list[Card]:
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
            notes=list(record.facts.notes) or UNSET,
            unused=list(record.facts.unused) or UNSET,
            virtual_tokens=record.facts.virtual_tokens or UNSET,
            num_tasks=record.facts.num_tasks or UNSET,
            state="device" if record.digest in device else "host" if record.digest in host else "disk",
            requests_running=running[record.digest],
            origin=dict(record.origin) or UNSET,
            created=int(record.created),
            owner=tenant_of(record.owner) or UNSET,
            error=services.owned.library.damaged.get(record.digest, UNSET),
            **_settings(*stored.get(record.name, NOTHING_SET)),
        )
        for record in records
    ]


def _settings(settings: Settings, ends: float | None) -> dict[str, Any]:
    """Return the fields of a card that are set."""
    return {
        "pinned": settings.pinned or UNSET,
        "ttl": UNSET if settings.ttl is None else settings.ttl,
        "expires_at": UNSET if ends is None else int(ends),
        "tags": list(settings.tags) or UNSET,
        "metadata": settings.metadata or UNSET,
    }
