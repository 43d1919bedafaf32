"""POST /v1/routes/{name}/evaluate: how well a route chooses, by prompts whose right targets are known."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Response
from msgspec import Meta
from pydantic import Field

from peftserve.adapters.routing.bodies import Body as RouteBody
from peftserve.adapters.routing.bodies import Match
from peftserve.adapters.routing.evaluation import Judged, evaluate
from peftserve.adapters.routing.found import Hop
from peftserve.adapters.routing.policies import targets_of
from peftserve.adapters.routing.query import Query

from ..http.bodies import json_body
from ..openai.answers import json_response
from ..openai.generation import Turns
from ..openai.model_request import Body
from ..openai.resolution import resolve_route
from ..services import Services, ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Routes"])

MAX_EXAMPLES = 10_000
CHOICE = 500  # microseconds on the event loop, of a choice by content among many candidates


class LabelledPrompt(Body):
    """A prompt whose right target is known."""

    prompt: str
    target: str = Field(min_length=1, max_length=256, description="One of those that the route names.")


class EvaluateRequest(Body):
    """Labelled prompts, other than the route's own examples."""

    examples: list[LabelledPrompt] = Field(min_length=1, max_length=MAX_EXAMPLES, fail_fast=True)


class Evaluated(msgspec.Struct):
    """How often a route was right."""

    accuracy: Annotated[float, Meta(description="Share of right choices, of 0 to 1.")]
    threshold: Annotated[float | None, Meta(description="The one that makes most choices right; null without scores.")]
    best_accuracy: Annotated[float, Meta(description="The share that it makes right.")]
    confusion: Annotated[
        Mapping[str, Mapping[str, int]], Meta(description="Right target to chosen target to number of prompts.")
    ]


@router.post("/v1/routes/{name:named}/evaluate")
@Operation(
    "Evaluate a route",
    Evaluated(0.75, 0.21, 1.0, {"sql": {"sql": 3, "demo": 1}}),
    body=EvaluateRequest,
    examples={"One prompt": {"examples": [{"prompt": "SELECT name", "target": "sql"}]}},
    errors=(404,),
)
async def evaluate_route(
    services: ServicesOf,
    name: Annotated[str, Path(description="A route's name.", examples=["support"])],
    body: Annotated[EvaluateRequest, Depends(json_body(EvaluateRequest))],
) -> Response:
    """Ask the route for each prompt, generate nothing, and sum up how often it was right."""
    route = services.adapters.routes.get(name).body()
    judged, turns = [], Turns()
    for example in body.examples:
        resolved = await resolve_route(services, name, Query(lambda text=example.prompt: text))  # type: ignore[misc]
        judged.append(_judge(example.target, resolved.hops[0]))
        await turns.spend(CHOICE)
    found = evaluate(judged, _targets(services, route), _fallback(services, route))
    return json_response(Evaluated(found.accuracy, found.threshold, found.best_accuracy, found.confusion))


def _judge(target: str, hop: Hop) -> Judged:
    """Return what a route made of a prompt. Of several that answer together, the nearest counts."""
    nearest, score = max(hop.scores, key=lambda pair: pair[1], default=(None, None))
    return Judged(target, hop.chosen or nearest or "", nearest, score)


def _targets(services: Services, route: RouteBody) -> Sequence[str]:
    fallback = _fallback(services, route)
    return [*targets_of(route), *([] if fallback is None else [fallback])]


def _fallback(services: Services, route: RouteBody) -> str | None:
    """Return what answers under the threshold of a route that has one."""
    return (route.fallback or services.base_id) if isinstance(route, Match) else None
