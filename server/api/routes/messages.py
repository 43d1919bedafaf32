"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from ..messages_api.creation import count_tokens, create_message
from ..messages_api.dialect import message_error
from ..messages_api.request import CountRequest, MessagesRequest
from ..messages_api.structs import AssistantMessage, BlockDelta, MessageText, MessageUsage, TextPiece, TokenCount
from ..services import ServicesOf
from .direct import Handler
from .documentation import Operation
from .generation import HEADERS, OF_ROUTES

router = APIRouter(tags=["Completions"])

DIRECT: Mapping[str, Handler] = {"/v1/messages": create_message}
"""Path to the handler of a POST to it, as in generation.py."""

_ERROR = message_error("invalid_request_error", "Invalid request: max_tokens: Field required.")
_MESSAGES = [{"role": "user", "content": "All names."}]


@router.post("/v1/messages")
@Operation(
    "Create a message",
    AssistantMessage(
        id="msg_1",
        model="sql@2",
        content=[MessageText("SELECT name FROM users;")],
        stop_reason="end_turn",
        usage=MessageUsage(12, 9),
    ),
    body=MessagesRequest,
    examples={
        "Adapter": {"model": "sql", "system": "Be brief.", "messages": _MESSAGES, "max_tokens": 16, "temperature": 0},
        "Prefilled, as a stream": {
            "messages": [*_MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "SELECT"}]}],
            "max_tokens": 16,
            "stream": True,
        },
    },
    errors=(404, 429),
    failure=_ERROR,
    events=BlockDelta(0, TextPiece("SELECT")),
    ends_with_done=False,
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
async def messages(request: Request, services: ServicesOf) -> Response:
    """Write the assistant's next message, as Anthropic's Messages API does. The key may be sent as `x-api-key`."""
    return await create_message(request, services)


@router.post("/v1/messages/count_tokens")
@Operation(
    "Count the tokens of a conversation",
    TokenCount(12),
    body=CountRequest,
    examples={"Adapter": {"model": "sql", "messages": _MESSAGES}},
    errors=(404,),
    failure=_ERROR,
)
async def message_tokens(request: Request, services: ServicesOf) -> Response:
    """Count what the prompt of a conversation has, written by the template of what would answer."""
    return await count_tokens(request, services)
