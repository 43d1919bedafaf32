"""GET /v1/server: what a client needs to know of the server before it asks anything of it."""

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Response
from msgspec import Meta

from ..openai.answers import json_response
from ..services import ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Models"])


class Server(msgspec.Struct, kw_only=True):
    """The base of a server, and how it is set up."""

    id: Annotated[str, Meta(description="The base's id.")]
    object: Literal["server"] = "server"
    created: Annotated[int, Meta(description="Unix time of the start in seconds.")]
    architecture: str
    device: Annotated[str, Meta(description="Where the base runs, such as `cpu`.")]
    dtype: str
    max_model_len: Annotated[int, Meta(description="Most tokens of prompt and answer together.")]
    max_loras: Annotated[int, Meta(description="Most adapters on the device at once.")]
    max_running: Annotated[int, Meta(description="Most sequences in one step.")]
    has_text: Annotated[bool, Meta(description="Whether there is a tokenizer; or else prompts are token ids.")]
    has_chat_template: Annotated[bool, Meta(description="Whether the base takes chats.")]
    keep_deleted: Annotated[float, Meta(description="Seconds for which deleted adapters can be restored.")]
    upload_limit: Annotated[int, Meta(description="Most bytes of one uploaded adapter.")]


EXAMPLE = Server(
    id="demo",
    created=1_767_225_600,
    architecture="LlamaForCausalLM",
    device="cpu",
    dtype="float32",
    max_model_len=512,
    max_loras=32,
    max_running=256,
    has_text=True,
    has_chat_template=True,
    keep_deleted=0,
    upload_limit=4 << 30,
)


@router.get("/v1/server")
@Operation("Show the server", EXAMPLE)
async def show_server(services: ServicesOf) -> Response:
    """Return the base's facts and the settings that clients meet."""
    info, config, tokenizer = services.model(), services.config, services.tokenizer()
    return json_response(
        Server(
            id=services.base_id,
            created=services.started,
            architecture=info.architecture,
            device=info.device,
            dtype=info.dtype,
            max_model_len=info.max_model_len,
            max_loras=info.max_loras,
            max_running=info.max_running,
            has_text=tokenizer.has_text,
            has_chat_template=tokenizer.chat_template is not None,
            keep_deleted=config.keep_deleted,
            upload_limit=config.upload_limit,
        )
    )
