"""POST /v1/routes/{name}/explain: what a route would choose for a request, without answering it."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response
from msgspec import Meta
from pydantic import Field, model_validator

from peftserve.adapters.resolved import Resolved
from peftserve.adapters.routing.query import Query

from ..http.bodies import json_body
from ..openai.answers import json_response
from ..openai.chat import last_words
from ..openai.chat_request import MAX_MESSAGES, Message
from ..openai.model_request import Body
from ..openai.resolution import resolve_route
from ..services import ServicesOf
from .documentation import Operation

router = APIRouter(tags=["Routes"])


class ExplainRequest(Body):
    """A request that is not answered: either a prompt or messages."""

    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    user: str | None = Field(default=None, max_length=1024, description="An id of the end user, for sticky splits.")

    @model_validator(mode="after")
    def _one_of_two(self) -> "ExplainRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self

    def text(self) -> str:
        """Return what the content is judged by."""
        return last_words(self.messages) if self.messages is not None else self.prompt or ""


class Part(msgspec.Struct):
    """An adapter of a mixture."""

    name: str
    weight: float


class Score(msgspec.Struct):
    """How well a candidate fits."""

    target: str
    score: float


class Explanation(msgspec.Struct):
    """What a route would choose now."""

    route: str
    version: int
    chosen: Annotated[str, Meta(description="`name@version`, the base's id, or a mixture's members and weights.")]
    adapters: Annotated[list[Part], Meta(description="Of a mixture; else none.")]
    arm: Annotated[int | None, Meta(description="Number of the arm, candidate or target, from 0.")]
    scores: Annotated[list[Score], Meta(description="Of all candidates, where it chooses by content.")]


EXAMPLE = Explanation("support", 2, "sql@1", [], 0, [Score("sql", 0.61), Score("json", 0.07)])


@router.post("/v1/routes/{name:named}/explain")
@Operation(
    "Explain a route's choice",
    EXAMPLE,
    body=ExplainRequest,
    examples={
        "Prompt": {"prompt": "SELECT name", "user": "ann"},
        "Messages": {"messages": [{"role": "user", "content": "All names."}]},
    },
    errors=(404,),
)
async def explain_route(
    request: Request,
    services: ServicesOf,
    name: Annotated[str, Path(description="A route's name.", examples=["support"])],
    body: Annotated[ExplainRequest, Depends(json_body(ExplainRequest))],
) -> Response:
    """Return what the route chooses for such a request. Headers count for splits that are sticky by one."""
    query = Query(body.text, body.user, request.headers.get, is_chat=body.messages is not None)
    return json_response(explanation(await resolve_route(services, name, query)))


def explanation(resolved: Resolved) -> Explanation:
    """Return why a route has chosen. Of routes on its way, the first that has an arm or scores tells them."""
    route = resolved.hops[0]
    is_sum = len(resolved.members) > 1 or any(member.weight != 1 for member in resolved.members)
    return Explanation(
        route.route,
        route.version,
        resolved.label,
        [Part(str(ref), weight) for ref, weight in resolved.members] if is_sum else [],
        next((hop.arm for hop in resolved.hops if hop.arm is not None), None),
        [Score(*pair) for pair in next((hop.scores for hop in resolved.hops if hop.scores), ())],
    )
