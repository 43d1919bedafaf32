"""POST /v1/completions and /v1/chat/completions.

Both are asked for thousands of times a second, and FastAPI's dispatch takes 126 of a short request's 600 microseconds.
So they are answered before it sees them (`direct.py`, by the table DIRECT). They are its routes all
the same: for the schema, and for whoever asks with another method.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from ..openai.chat import create_chat_completion
from ..openai.chat_request import ChatRequest
from ..openai.completion_request import CompletionRequest
from ..openai.completions import create_completion
from ..openai.responses import (
    CachedTokens,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Completion,
    CompletionChoice,
    Usage,
)
from ..services import ServicesOf
from .direct import Handler
from .documentation import Operation

router = APIRouter(tags=["Completions"])

DIRECT: Mapping[str, Handler] = {
    "/v1/completions": create_completion,
    "/v1/chat/completions": create_chat_completion,
}
"""Path to the handler of a POST to it."""


HEADERS = {"x-peftserve-adapter": "What answered: the base's id, `name@version`, or a mixture's members and weights."}
OF_ROUTES = {
    "x-peftserve-route": "The routes by which it was chosen, the outermost first, each as `name@version; arm=0; "
    "score=0.61` with what applies."
}
_IDENTITY: dict[str, Any] = {"created": 1_767_225_600, "model": "sql@2"}
_USAGE = Usage(12, 9, 21, CachedTokens(0))


@router.post("/v1/completions")
@Operation(
    "Complete a text",
    Completion(id="cmpl-1", choices=[CompletionChoice(0, " FROM users;", None, "stop")], usage=_USAGE, **_IDENTITY),
    body=CompletionRequest,
    examples={
        "Adapter": {"model": "sql", "prompt": "SELECT name", "max_tokens": 16, "temperature": 0},
        "Mixture, as a stream": {
            "adapters": [{"name": "sql", "weight": 0.7}, {"name": "json", "weight": 0.3}],
            "prompt": ["SELECT name", "SELECT id"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
    errors=(404, 429),
    events=Completion(id="cmpl-1", choices=[CompletionChoice(0, " FROM")], **_IDENTITY),
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
async def completions(request: Request, services: ServicesOf) -> Response:
    """Go on with one prompt or several, with the base, an adapter, or a weighted mixture of adapters."""
    return await create_completion(request, services)


@router.post("/v1/chat/completions")
@Operation(
    "Answer a chat",
    ChatCompletion(
        id="chatcmpl-1",
        choices=[ChatChoice(0, ChatMessage("SELECT name FROM users;"), None, "stop")],
        usage=_USAGE,
        **_IDENTITY,
    ),
    body=ChatRequest,
    examples={
        "Adapter": {"model": "sql", "messages": [{"role": "user", "content": "All names."}], "max_tokens": 16},
        "Base, as a stream": {
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
            "max_completion_tokens": 16,
            "stream": True,
        },
    },
    errors=(404, 429),
    events=ChatChunk(id="chatcmpl-1", choices=[ChatChunkChoice(0, ChatDelta(content="SELECT"))], **_IDENTITY),
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
async def chat_completions(request: Request, services: ServicesOf) -> Response:
    """Write the assistant's next message, by the model's own chat template."""
    return await create_chat_completion(request, services)
