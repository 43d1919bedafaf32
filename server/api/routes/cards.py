"""Cards: the public description of an adapter, put together from the registry, the engine and the requests."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from peftserve.adapters.registry_reader import AdapterRecord

from ..services import Services


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
    tensors: Annotated[int, Meta(description="Tensors of the files, all of which are served.")]
    virtual_tokens: Annotated[
        int | UnsetType, Meta(description="Positions of the context that the adapter takes, if any.")
    ] = UNSET
    num_tasks: Annotated[int | UnsetType, Meta(description="Tasks to choose from with `task_id`, if any.")] = UNSET
    state: Annotated[Literal["disk", "host", "device"], Meta(description="The fastest place that holds it.")]
    requests_running: int
    origin: Annotated[
        dict[str, Any] | UnsetType, Meta(description="Where it came from, if not from an upload; never a secret.")
    ] = UNSET
    created: Annotated[int, Meta(description="Unix time in seconds.")]
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


async def make_cards(services: Services, records: Sequence[AdapterRecord]) -> list[Card]:
    """Return a card for each record, with the requests of all API processes."""
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
            origin=dict(record.origin) or UNSET,
            created=int(record.created),
            error=services.owned.library.damaged.get(record.digest, UNSET),
        )
        for record in records
    ]
