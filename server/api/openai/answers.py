"""The common part of the answers of completions and chats: identity, usage, and the split between stream and whole."""

import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

import msgspec
from fastapi import Request, Response

from peftserve.adapters.resolved import Resolved
from peftserve.adapters.routing.found import Hop

from ..http.leaving import CLIENT_GONE, ClientGone, until_disconnect
from ..http.protocol import CONNECTION
from ..services import Services
from ..watching.record import RECORD
from .event_stream import OF_COMPLETIONS, Ending, EventStream
from .generation import Generation, Plan
from .responses import CachedTokens, Usage
from .shadow import shadow_of
from .text_deltas import Delta

Whole = Callable[[Generation], Awaitable[msgspec.Struct]]
Stream = Callable[[Generation], AsyncGenerator[bytes]]


def new_id(prefix: str, given: str | None = None) -> tuple[str, int]:
    """Return (id, created) of an answer. given: the request's own id, if it has one."""
    return f"{prefix}-{given or secrets.token_hex(16)}", int(time.time())


async def answer(
    services: Services, request: Request, plan: Plan, whole: Whole, stream: Stream, ending: Ending = OF_COMPLETIONS
) -> Response:
    """Run a plan made in this turn of the event loop, and answer as the client asked: whole or as a stream.

    ending: of a stream. Raises ApiError, EngineDead.
    """
    generation = Generation(services, plan, shadow_of(services, request, plan), request.scope.get(RECORD))
    headers = identity_headers(plan.resolved)
    lease = services.hold(plan.resolved, plan.num_sequences, generation.use)
    headers |= lease.headers
    services.shadows.make_room()
    if plan.body.stream:
        return EventStream(stream(generation), lease, headers, ending)
    with lease:
        try:
            content = msgspec.json.encode(await until_disconnect(request.scope[CONNECTION], whole(generation)))
        except ClientGone:
            lease.close()
            return Response(status_code=CLIENT_GONE)
    return json_response(content, headers=headers)


def identity_headers(resolved: Resolved) -> dict[str, str]:
    """Return the headers that say what answers, and by which routes it was chosen."""
    headers = {"x-peftserve-adapter": resolved.label}
    if resolved.hops:
        headers["x-peftserve-route"] = ", ".join(map(_hop, resolved.hops))
    return headers


def _hop(hop: Hop) -> str:
    """Return one route on the way to an answer, as a header has it."""
    arm = "" if hop.arm is None else f"; arm={hop.arm}"
    score = "" if hop.score is None else f"; score={hop.score:.4g}"
    return f"{hop.route}@{hop.version}{arm}{score}"


def json_response(
    content: msgspec.Struct | bytes, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, headers, "application/json")


class UsageCounter:
    """Add up a request's tokens. A prompt counts once, however many answers were sampled for it."""

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
