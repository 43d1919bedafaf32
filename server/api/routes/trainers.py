"""Routes that trainers of prime-rl and TRL call beside vLLM's, with their paths: adapters are taken, and whole weights,
which would change the base, are refused with a message that says what to do.
"""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response

from ..http.bodies import json_body
from ..http.errors import bad_request
from ..openai.answers import json_response
from ..services import ServicesOf
from .documentation import Operation
from .vllm_adapters import LoadLora, load_lora_adapter

router = APIRouter(tags=["vLLM"])

WHOLE_WEIGHTS = (
    "init_broadcaster",  # prime-rl
    "init_communicator",  # TRL
    "update_named_param",
    "init_weight_transfer_engine",  # vLLM, by TRL
    "start_weight_update",
    "update_weights",
    "finish_weight_update",
    "pause",
    "resume",
)


class Status(msgspec.Struct):
    """prime-rl's answer."""

    status: str = "ok"


@router.post("/load_lora_adapter")
@Operation(
    "Load an adapter anew",
    Status(),
    body=LoadLora,
    examples={"Folder": {"lora_name": "policy", "lora_path": "/srv/adapters/sql"}},
    errors=(403, 404, 409),
)
async def reload_lora_adapter(
    request: Request, services: ServicesOf, body: Annotated[LoadLora, Depends(json_body(LoadLora))]
) -> Response:
    """Add an adapter, or a new version of one, as prime-rl asks for after each step. Requests that run finish on the
    version that they have.
    """
    await load_lora_adapter(request, services, body.model_copy(update={"load_inplace": True}))
    return json_response(Status())


@router.post("/reset_prefix_cache")
@router.post("/reset_prefix_cache/", include_in_schema=False)
@Operation("Reset the prefix cache", Status())
async def reset_prefix_cache() -> Response:
    """Do nothing, which is all it takes: what is cached of an adapter goes by its content, and that of a new version
    is another.
    """
    return json_response(Status())


async def refuse_weights() -> Response:
    """Say that the base is never written. Raises ApiError."""
    raise bad_request(
        "The base's weights never change on this server, so it takes no whole weights and need not be paused. Train an "
        "adapter and push it: POST /v1/adapters again under the same name makes its next version.",
        code="frozen_base",
    )


for _path in WHOLE_WEIGHTS:
    for _end in ("", "/"):
        router.add_api_route(f"/{_path}{_end}", refuse_weights, methods=["POST"], include_in_schema=False)
for _path in ("/get_world_size", "/get_world_size/"):
    router.add_api_route(_path, refuse_weights, methods=["GET"], include_in_schema=False)
