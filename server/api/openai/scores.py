"""POST /score and POST /rerank, as vLLM, Jina and Cohere have them: texts compared by the cosine of their vectors."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from fastapi import Request, Response
from msgspec import UNSET, Meta, UnsetType

from ..http.bodies import read_json
from ..services import Services
from ..text.tokenizer import Tokenizer
from .answers import new_id
from .completion_request import PromptInput
from .embedding_request import RerankRequest, ScoreRequest
from .generation import Turns
from .pooled import Array, Vectors, answer_pooled, plan_pooled
from .pooled_request import PooledRequest
from .responses import Answered, Created, PooledUsage

COMPARISON = 10  # microseconds


class PairScore(msgspec.Struct, kw_only=True):
    """How like the two texts of one pair are."""

    index: Annotated[int, Meta(description="Number of the pair, from 0.")]
    object: Literal["score"] = "score"
    score: Annotated[float, Meta(description="The cosine of their vectors, from -1 to 1.")]


class ScoreList(msgspec.Struct, kw_only=True):
    """The scores of all pairs, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: Created
    model: Answered
    data: list[PairScore]
    usage: PooledUsage


class Document(msgspec.Struct):
    """A document's text."""

    text: str


class Ranked(msgspec.Struct, kw_only=True):
    """A document in its place."""

    index: Annotated[int, Meta(description="Number of the document in the request, from 0.")]
    document: Annotated[Document | UnsetType, Meta(description="Unless `return_documents` is false.")] = UNSET
    relevance_score: Annotated[float, Meta(description="The cosine of its vector and the query's, from -1 to 1.")]


class Ranking(msgspec.Struct, kw_only=True):
    """The documents, the likest to the query first; of equals the earlier one."""

    id: str
    model: Answered
    results: list[Ranked]
    usage: PooledUsage


async def create_scores(request: Request, services: Services) -> Response:
    body = await read_json(request, ScoreRequest)

    async def listed(vectors: Vectors) -> ScoreList:
        scores = await _cosines(vectors.values[: len(body.text_1)], vectors.values[len(body.text_1) :])
        id_, created = new_id("score", body.request_id)
        data = [PairScore(index=index, score=score) for index, score in enumerate(scores)]
        return ScoreList(id=id_, created=created, model=vectors.plan.resolved.model, data=data, usage=vectors.usage)

    return await _compare(services, request, body, [*body.text_1, *body.text_2], listed)


async def create_ranking(request: Request, services: Services) -> Response:
    body = await read_json(request, RerankRequest)

    async def ranked(vectors: Vectors) -> Ranking:
        scores = await _cosines(vectors.values[:1], vectors.values[1:])
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
        return Ranking(
            id=new_id("rerank", body.request_id)[0],
            model=vectors.plan.resolved.model,
            results=[_ranked(body, index, scores[index]) for index in order],
            usage=vectors.usage,
        )

    return await _compare(services, request, body, [body.query, *body.documents], ranked)


def _ranked(body: RerankRequest, index: int, score: float) -> Ranked:
    document = UNSET if body.return_documents is False else Document(body.documents[index])
    return Ranked(index=index, document=document, relevance_score=score)


async def _compare(
    services: Services,
    request: Request,
    body: PooledRequest,
    texts: list[str],
    build: Callable[[Vectors], Awaitable[msgspec.Struct]],
) -> Response:
    async def prompts(tokenizer: Tokenizer) -> Sequence[PromptInput]:
        return texts

    plan = await plan_pooled(services, request, body, lambda: texts[0], prompts)
    return await answer_pooled(services, request, plan, build)


async def _cosines(firsts: Sequence[Array], seconds: Sequence[Array]) -> list[float]:
    """Return the cosine of each pair: the one first vector with each second one, or those at the same places."""
    turns, scores = Turns(), []
    for place, second in enumerate(seconds):
        scores.append(_cosine(firsts[place if len(firsts) > 1 else 0], second))
        await turns.spend(COMPARISON)
    return scores


def _cosine(first: Array, second: Array) -> float:
    """Return the cosine in float64; 0 where a vector has no length."""
    one, other = first.astype(np.float64), second.astype(np.float64)
    length = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.clip(one @ other / length, -1, 1)) if length else 0.0
