"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from fastapi import Request, Response

from ..http.bodies import read_json
from ..openai.answers import answer, json_response
from ..openai.chat import count_chat, plan_chat
from ..openai.event_stream import Ending
from ..openai.generation import Plan
from ..openai.places import told_as
from ..services import Services
from .builder import MessageBuilder
from .request import CountRequest, MessagesRequest
from .structs import TokenCount
from .translation import translate


async def create_message(request: Request, services: Services) -> Response:
    plan = await _plan(services, request, await read_json(request, MessagesRequest))
    builder = MessageBuilder(plan)
    return await answer(services, request, plan, builder.whole, builder.stream, Ending(builder.failed))


async def count_tokens(request: Request, services: Services) -> Response:
    """Count a conversation, also one that is longer than the context: whether to shorten it is why clients ask."""
    chat, names = translate(await read_json(request, CountRequest))
    with told_as(names):
        return json_response(TokenCount(await count_chat(services, request, chat)))


async def _plan(services: Services, request: Request, body: MessagesRequest) -> Plan:
    """Plan the answer. No await may come between the return and `answer`. Raises AdapterError, ApiError."""
    chat, names = translate(body)
    with told_as(names):
        return await plan_chat(services, request, chat)
