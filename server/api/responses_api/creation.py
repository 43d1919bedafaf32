"""POST /v1/responses, as OpenAI has it, without a store."""

from fastapi import Request, Response

from ..http.bodies import read_json
from ..http.errors import ApiError
from ..openai.answers import answer
from ..openai.chat import plan_chat
from ..openai.event_stream import Ending
from ..openai.generation import Plan
from ..openai.places import told_as
from ..services import Services
from .builder import ResponseBuilder
from .items import Json
from .request import ResponsesRequest
from .translation import Translated, translate


async def create_response(request: Request, services: Services) -> Response:
    body = await read_json(request, ResponsesRequest)
    plan = await _plan(services, request, body)
    builder = ResponseBuilder(body, plan)
    return await answer(services, request, plan, builder.whole, builder.stream, Ending(builder.failed))


async def _plan(services: Services, request: Request, body: ResponsesRequest) -> Plan:
    """Plan the answer. No await may come between the return and `answer`. Raises AdapterError, ApiError."""
    translated = translate(body)
    try:
        return await _plan_chat(services, request, translated, translated.messages)
    except ApiError as error:
        if error.body.code != "context_length_exceeded" or body.truncation != "auto":
            raise
    return await _plan_shorter(services, request, translated)


async def _plan_shorter(services: Services, request: Request, translated: Translated) -> Plan:
    """Plan with as many of the newest turns as fit, found by bisection: each try writes a prompt and counts it."""
    choices = translated.later()
    fewest, most = min(1, len(choices) - 1), len(choices) - 1  # turns to leave out
    while fewest < most:
        middle = (fewest + most) // 2
        try:
            await _plan_chat(services, request, translated, choices[middle])
        except ApiError as error:
            if error.body.code != "context_length_exceeded":
                raise
            fewest = middle + 1
        else:
            most = middle
    return await _plan_chat(services, request, translated, choices[fewest])


async def _plan_chat(services: Services, request: Request, translated: Translated, messages: list[Json]) -> Plan:
    chat = translated.chat(messages)
    with told_as(translated.names):
        return await plan_chat(services, request, chat)
