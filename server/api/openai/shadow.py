"""The copy of a request for a split's shadow: answered by other adapters, and dropped.

It begins when the sequences of the answer are submitted, holds its own adapters, and is given up at any trouble.
Nothing that happens to it reaches the client.
"""

import logging
from collections.abc import Callable
from dataclasses import replace

from fastapi import Request

from peftserve.adapters.errors import AdapterError
from peftserve.adapters.resolved import Resolved
from peftserve.adapters.routing.query import Query

from ..http.errors import ApiError
from ..services import Services
from ..tenancy.tenant import SERVER
from .chat_request import ChatRequest
from .generation import Generation, Plan
from .planning import check_ids, weighted_adapters
from .resolution import resolve

logger = logging.getLogger(__name__)


def shadow_of(services: Services, request: Request, plan: Plan) -> Callable[[], None] | None:
    """Return what begins the copy of a request, or None if no split on its way has a shadow."""
    target = plan.resolved.shadow
    if target is None:
        return None
    route, is_chat = plan.resolved.hops[0].route, isinstance(plan.body, ChatRequest)
    query = Query(plan.text, plan.body.user, request.headers.get, is_chat=is_chat)

    def begin() -> None:
        is_queued = services.engine.stats.num_waiting > 0
        if is_queued or not services.shadows.has_room(plan.num_sequences):
            services.metrics.count_shadow(route, "skipped")
        else:
            services.shadows.start(_counted(services, route, plan, target, query))

    return begin


async def _counted(services: Services, route: str, plan: Plan, target: str, query: Query) -> None:
    outcome = "aborted"
    try:
        outcome = await _answered(services, plan, target, query)
    except (AdapterError, ApiError) as error:
        logger.debug("The shadow %s of the route %s did not answer: %s", target, route, error)
        outcome = "skipped"
    except Exception as error:  # of a copy that nobody has asked for
        logger.warning("The shadow %s of the route %s has failed: %s", target, route, error)
        outcome = "failed"
    finally:
        services.metrics.count_shadow(route, outcome)


async def _answered(services: Services, plan: Plan, target: str, query: Query) -> str:
    """Answer a copy and return the outcome. Raises ApiError, AdapterError where it cannot begin; EngineDead."""
    resolved = await resolve(services, target, None, query, plan.salt)
    copy = _copy(services, plan, resolved)
    # Not of the client's share, which is for what the client asks.
    quiet = replace(services, metrics=services.shadows.metrics, tenant=SERVER)
    with quiet.hold(resolved, copy.num_sequences):
        try:
            await Generation(quiet, copy).collect()
        except (AdapterError, ApiError):
            return "failed"
    return "completed"


def _copy(services: Services, plan: Plan, resolved: Resolved) -> Plan:
    """Return the plan for other adapters. Raises ApiError, AdapterError where their limits do not allow it."""
    info = services.model()
    check_ids(info, plan.body, plan.prompts, resolved)
    for prompt, sampling in zip(plan.prompts, plan.sampling, strict=True):
        if len(prompt.token_ids) + resolved.virtual_tokens + sampling.max_tokens > info.max_model_len:
            raise ApiError(400, "the shadow's adapter leaves too little of the context")
    adapters = weighted_adapters(resolved, plan.body.task_id if _has_tasks(resolved) else None)
    return replace(plan, resolved=resolved, adapters=adapters)


def _has_tasks(resolved: Resolved) -> bool:
    return any(facts.num_tasks for facts in resolved.facts.values())
