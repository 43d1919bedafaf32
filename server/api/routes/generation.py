"""POST /v1/completions and /v1/chat/completions.

Both are asked for thousands of times a second, and FastAPI's dispatch takes 126 of a short request's 600 microseconds.
So they are answered before it sees them (`direct.py`, by the table DIRECT). They are its routes all
the same: for the schema, and for whoever asks with another method.
"""

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from ..openai.chat import create_chat_completion
from ..openai.completions import create_completion
from ..services import ServicesOf
from .direct import Handler

router = APIRouter()

DIRECT: Mapping[str, Handler] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
}
"""Path to what answers a POST to it."""


@router.post("/v1/completions")
async def completions(request: Request, services: ServicesOf) -> Response:
    return await create_completion(request, services)


@router.post("/v1/chat/completions")
async def chat_completions(request: Request, services: ServicesOf) -> Response:
    return await create_chat_completion(request, services)
