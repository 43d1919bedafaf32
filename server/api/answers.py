"""What the answers of completions and chats have in common: identity, usage, and the split between stream and whole."""

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import ExitStack

import msgspec
from fastapi import Request, Response

from .generation import Generation, Plan
from .planning import answer_headers, begin
from .responses import CachedTokens, Usage
from .sequence import Delta
from .services import Services
from .streaming import CLIENT_GONE, ClientGone, EventStream, until_disconnect

Whole = Callable[[Generation], Awaitable[msgspec.Struct]]
Stream = Callable[[Generation], AsyncGenerator[bytes]]


def new_id(prefix: str) -> tuple[str, int]:
    """(id, created) of an answer."""
    return f"{prefix}-{uuid.uuid4().hex}", int(time.time())


async def answer(services: Services, request: Request, plan: Plan, whole: Whole, stream: Stream) -> Response:
    """Run a plan of this turn of the event loop, sent the way the client asked for. Raises ApiError, EngineDead."""
    with ExitStack() as held:
        generation = begin(services, plan, held)
        headers = answer_headers(generation)
        if plan.body.stream:
            return EventStream(stream(generation), held.pop_all(), headers)
        return await _whole(request, generation, whole, held.pop_all(), headers)


async def _whole(
    request: Request, generation: Generation, whole: Whole, held: ExitStack, headers: dict[str, str]
) -> Response:
    async def work() -> bytes:
        with held:
            return msgspec.json.encode(await whole(generation))

    try:
        return json_response(await until_disconnect(request.receive, work()), headers=headers)
    except ClientGone:
        return Response(status_code=CLIENT_GONE)
    finally:
        held.close()


def json_response(
    content: msgspec.Struct | bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, "application/json")


class UsageCounter:
    """Adds up a request's tokens. A prompt counts once, however many answers were sampled for it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._generated = 0
        self._cached: dict[int, int] = {}  # prompt to tokens that its first answer found in the prefix cache

    def add(self, sequence: int, delta: Delta) -> None:
        self._generated += len(delta.token_ids)
        if delta.cached_tokens is not None:
            prompt, sample = divmod(sequence, self._plan.samples)
            if sample == 0:
                self._cached[prompt] = delta.cached_tokens

    def usage(self) -> Usage:
        prompt = self._plan.num_prompt_tokens
        return Usage(prompt, self._generated, prompt + self._generated, CachedTokens(sum(self._cached.values())))


def usage_of(plan: Plan, wholes: Sequence[Delta]) -> Usage:
    counter = UsageCounter(plan)
    for index, whole in enumerate(wholes):
        counter.add(index, whole)
    return counter.usage()
