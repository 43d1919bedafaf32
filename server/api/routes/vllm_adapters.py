"""vLLM's routes for adapters, with its bodies and answers, so that its tools work."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import PlainTextResponse
from pydantic import Field

from peftserve.adapters.names import parse_reference

from ..http.bodies import json_body
from ..http.errors import ApiError, bad_request
from ..http.leaving import CLIENT_GONE, ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..openai.model_request import Body
from ..services import Services, ServicesOf
from ..sources.local import allowed_folder
from ..sources.place import Place, SourceMissing, parse_place
from .documentation import Operation

router = APIRouter(tags=["vLLM"])


class LoadLora(Body):
    """An adapter of any PEFT method, from a folder of the server."""

    lora_name: str = Field(default="", max_length=256)
    lora_path: str = Field(
        default="",
        max_length=4096,
        description="A folder of the server below an allowed one; or, where allowed, `owner/name` of a hub, "
        "`huggingface://…`, `s3://…`, `gs://…`, `https://…`.",
    )
    load_inplace: bool = Field(default=False, description="Make a new version of a name that exists.")


class UnloadLora(Body):
    """An adapter to delete with its versions, or one version of it as `name@2`."""

    lora_name: str = Field(default="", max_length=256)


@router.post("/v1/load_lora_adapter")
@Operation(
    "Load an adapter",
    "Success: LoRA adapter 'sql' added successfully.",
    body=LoadLora,
    examples={"Folder": {"lora_name": "sql", "lora_path": "/srv/adapters/sql"}},
    errors=(404, 409),
)
async def load_lora_adapter(
    request: Request, services: ServicesOf, body: Annotated[LoadLora, Depends(json_body(LoadLora))]
) -> PlainTextResponse:
    """Add an adapter from a folder of the server or another source, if its operator allows that."""
    services.model()
    services.admission.check_open()
    if not body.lora_name or not body.lora_path:
        raise bad_request("Both 'lora_name' and 'lora_path' must be provided.")
    if not body.load_inplace and services.adapters.registry.find(body.lora_name) is not None:
        raise bad_request(
            f"The lora adapter '{body.lora_name}' has already been loaded. If you want to load the adapter in place, "
            "set 'load_inplace' to True.",
            "lora_name",
        )
    place = await asyncio.to_thread(_place, services, body.lora_path)
    async with services.staging() as staged:
        try:
            origin = await until_disconnect(request.scope[CONNECTION], services.sources.fetch(place, staged))
        except SourceMissing as error:
            raise _nothing_at(body.lora_path, f": {error.body.message}") from None
        except ClientGone:
            return PlainTextResponse(status_code=CLIENT_GONE)
        await services.owned.library.add(staged, body.lora_name, origin=origin)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


def _place(services: Services, path: str) -> Place:
    """Return what `lora_path` means: as in vLLM a folder if there is one, or a hub's `owner/name`."""
    sources = services.sources
    place = parse_place(path, hub_ids=sources.allows("hub"))
    if place.type == "hub" and "://" not in path and _is_folder(sources.settings.folders, path):
        place = Place("path", path)
    if place.type == "path" and not os.path.isdir(allowed_folder(sources.settings.folders, place.uri)):
        raise _nothing_at(path)
    return place


def _is_folder(roots: Sequence[Path], path: str) -> bool:
    try:
        return bool(roots) and os.path.isdir(allowed_folder(roots, path))  # False for a name that is too long, too
    except ApiError:
        return False


def _nothing_at(path: str, why: str = "") -> ApiError:
    return ApiError(404, f"No adapter found for {path}{why}", param="lora_path", code="adapter_not_found")


@router.post("/v1/unload_lora_adapter")
@Operation(
    "Unload an adapter",
    "Success: LoRA adapter 'sql' removed successfully.",
    body=UnloadLora,
    examples={"Adapter": {"lora_name": "sql"}},
    errors=(404, 409),
)
async def unload_lora_adapter(
    services: ServicesOf, body: Annotated[UnloadLora, Depends(json_body(UnloadLora))]
) -> PlainTextResponse:
    """Delete an adapter. Requests that run finish on what they have."""
    if not body.lora_name:
        raise bad_request("'lora_name' needs to be provided to unload a LoRA adapter.", "lora_name")
    reference = parse_reference(body.lora_name)
    if reference is None or services.adapters.registry.find(*reference) is None:
        raise ApiError(
            404, f"The lora adapter '{body.lora_name}' cannot be found.", param="lora_name", code="model_not_found"
        )
    await services.owned.library.delete(*reference, force=False)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")
