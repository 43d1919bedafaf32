"""Who answers a request: the router's choice, with what it needs for it. The same for all routes."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from fastapi import Request

from peftserve.adapters.errors import AdapterError, AdapterNotFound
from peftserve.adapters.names import DEFAULT, VersionRef, parse_reference
from peftserve.adapters.resolved import Resolved
from peftserve.adapters.routing.query import LoadNeeded, PolicyNeeded, Query, VectorsNeeded

from ..services import Services
from ..text.tokenizer import Tokenizer
from .adapter_fields import which_model
from .chat_request import ChatRequest
from .hidden_states import with_vectors
from .model_request import AnsweredRequest, ModelRequest
from .planning import salt_of


async def who_answers(services: Services, request: Request, body: AnsweredRequest, text: Callable[[], str]) -> Resolved:
    """Look up the adapters that answer.

    text: returns what routes judge content by. No await may come between the return and `answer`: see `Services.hold`.
    Raises AdapterError.
    """
    mixture = None if body.adapters is None else [(part.name, part.weight) for part in body.adapters]
    model = asked_model(services, body, several=mixture is not None)
    query = Query(text, body.user, lambda name: request.headers.get(name), is_chat=isinstance(body, ChatRequest))
    return await resolve(services, model, mixture, query, salt_of(request, body))


async def resolve(
    services: Services,
    model: str | None,
    mixture: Sequence[tuple[str, float]] | None = None,
    query: Query | None = None,
    salt: str = "",
) -> Resolved:
    """Ask the router, get what it needs first, and ask it again until it answers.

    salt: of the request's pages, for what the engine runs of it.
    Returns in the same turn of the event loop as the router's last look-up. Raises AdapterError, ApiError, EngineDead.
    """
    query = query or Query()
    is_last = False  # once it has been found, it has to be there
    while True:
        try:
            return services.adapters.router.resolve(model, mixture, query)
        except PolicyNeeded as needed:
            await asyncio.to_thread(needed.make)
        except VectorsNeeded as needed:
            query = await with_vectors(services, query, needed.keys, salt)
        except LoadNeeded as needed:
            query = await _with_load(services, query, needed.ref)
        except AdapterNotFound:
            if is_last or mixture is not None or model is None or not await _is_found(services, model):
                raise
            is_last = True


async def _with_load(services: Services, query: Query, ref: VersionRef) -> Query:
    """Return the query with whether a version can be loaded, which it is by that. Raises EngineDead."""
    try:
        await services.load(ref)
    except AdapterError:
        can_load = False
    else:
        can_load = True
    return replace(query, loads={**query.loads, ref.digest: can_load})


async def _is_found(services: Services, model: str) -> bool:
    """Look for an adapter that is not registered; return whether it is there now. Raises what kept it away."""
    reference = parse_reference(model)
    adapters = services.adapters
    if services.finder is None or reference is None or reference.version is not None or model == DEFAULT:
        return False
    if adapters.registry.find(model) is not None or adapters.routes.head(model) is not None:
        return False
    return await services.finder.find(model)


async def resolve_route(services: Services, name: str, query: Query) -> Resolved:
    """Return what a route chooses. Raises AdapterError, also for a name that is no route's."""
    services.adapters.routes.get(name)
    resolved = await resolve(services, name, None, query)
    if not resolved.hops:  # it has gone meanwhile, and an adapter has its name
        raise AdapterNotFound(f"there is no route {name[:140]!r}", param="name")
    return resolved


async def tokenizer_named(services: Services, body: ModelRequest) -> Tokenizer:
    """Return the tokenizer of what is asked for; of a route, whose policy is not asked, the base's.

    Raises AdapterError, ApiError, EngineDead.
    """
    model = asked_model(services, body)
    if not services.adapters.router.is_known(model):
        await resolve(services, model)  # looks for it wherever that may be, or says why not
    resolved = services.adapters.router.alone(model)
    with services.adapters.leases.held(resolved):
        return await services.tokenizer_of(resolved)


def asked_model(services: Services, body: ModelRequest, several: bool = False) -> str | None:
    """Return the model that is asked for, as `model` or by another server's field.

    Raises ApiError where they differ.
    """
    return which_model(body.model, several, body.named, (None, DEFAULT, *services.base_ids))
