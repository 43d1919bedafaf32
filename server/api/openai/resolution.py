"""Who answers a request: the router's choice, with what it needs for it. The same for all routes."""

import asyncio
from collections.abc import Callable, Sequence

from fastapi import Request

from peftserve.adapters.names import DEFAULT
from peftserve.adapters.resolved import Resolved
from peftserve.adapters.routing.query import PolicyNeeded, Query

from ..services import Services
from .adapter_fields import which_model
from .requests import GenerationRequest, ModelRequest


async def who_answers(
    services: Services, request: Request, body: GenerationRequest, text: Callable[[], str]
) -> Resolved:
    """Look up the adapters that answer.

    text: returns what routes judge content by. No await may come between the return and `answer`: see `Services.hold`.
    Raises AdapterError.
    """
    mixture = None if body.adapters is None else [(part.name, part.weight) for part in body.adapters]
    model = asked_model(services, body, several=mixture is not None)
    return await resolve(services, model, mixture, Query(text, body.user, request.headers.get))


async def resolve(
    services: Services,
    model: str | None,
    mixture: Sequence[tuple[str, float]] | None = None,
    query: Query | None = None,
) -> Resolved:
    """Ask the router, get what it needs first, and ask it again until it answers.

    Returns in the same turn of the event loop as the router's last look-up. Raises AdapterError.
    """
    query = query or Query()
    while True:
        try:
            return services.adapters.router.resolve(model, mixture, query)
        except PolicyNeeded as needed:
            await asyncio.to_thread(needed.make)


def asked_model(services: Services, body: ModelRequest, several: bool = False) -> str | None:
    """Return the model that is asked for, as `model` or by another server's field.

    Raises ApiError where they differ.
    """
    return which_model(body.model, several, body.named, (None, DEFAULT, services.base_id))
