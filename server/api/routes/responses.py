"""POST /v1/responses, and the routes of OpenAI's store of them, which this server does not have."""

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from ..http.errors import ApiError
from ..responses_api.creation import create_response
from ..responses_api.events import OutputTextDelta
from ..responses_api.request import ResponsesRequest
from ..responses_api.structs import (
    InputTokensDetails,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    ResponseObject,
    ResponseUsage,
)
from ..services import ServicesOf
from .direct import Handler
from .documentation import Operation
from .generation import HEADERS, OF_ROUTES

router = APIRouter(tags=["Completions"])

DIRECT: Mapping[str, Handler] = {"/v1/responses": create_response}
"""Path to the handler of a POST to it, as in generation.py."""


@router.post("/v1/responses")
@Operation(
    "Create a response",
    ResponseObject(
        id="resp_1",
        created_at=1_767_225_600,
        completed_at=1_767_225_601,
        status="completed",
        model="sql@2",
        output=[OutputMessage("msg_1", "completed", [OutputText("SELECT name FROM users;")])],
        usage=ResponseUsage(12, InputTokensDetails(0), 9, OutputTokensDetails(0), 21),
    ),
    body=ResponsesRequest,
    examples={
        "Adapter": {"model": "sql", "input": "All names.", "max_output_tokens": 16, "temperature": 0},
        "Conversation, as a stream": {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": "Hello!"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi."}]},
                {"role": "user", "content": [{"type": "input_text", "text": "Bye!"}]},
            ],
            "max_output_tokens": 16,
            "stream": True,
        },
    },
    errors=(404, 429),
    events=OutputTextDelta(item_id="msg_1", output_index=0, delta="SELECT", sequence_number=4),
    ends_with_done=False,
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
async def responses(request: Request, services: ServicesOf) -> Response:
    """Answer a text or a conversation of items, as OpenAI's Responses API does. Nothing is kept: each request has all
    of its conversation."""
    return await create_response(request, services)


@router.get("/v1/responses/{identity}", include_in_schema=False)
@router.delete("/v1/responses/{identity}", include_in_schema=False)
@router.get("/v1/responses/{identity}/input_items", include_in_schema=False)
@router.post("/v1/responses/{identity}/cancel", include_in_schema=False)
async def stored(identity: str) -> Response:
    """Say that there is no store."""
    message = "This server keeps no responses: each is sent once, to who asked for it."
    raise ApiError(404, message, param="response_id", code="response_not_found")
