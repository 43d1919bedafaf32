"""POST /v1/embeddings, /score and /rerank: vectors of texts, and texts compared by their vectors.

Where vLLM, Jina and Cohere have more than one path for the same thing, each is answered.
"""

from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from ..openai.embedding_request import EmbeddingRequest, RerankRequest, ScoreRequest
from ..openai.embeddings import Embedding, EmbeddingList, create_embeddings
from ..openai.responses import CachedTokens, PooledUsage
from ..openai.scores import Document, PairScore, Ranked, Ranking, ScoreList, create_ranking, create_scores
from ..services import ServicesOf
from .direct import Handler
from .documentation import Operation
from .generation import HEADERS, OF_ROUTES

router = APIRouter(tags=["Embeddings"])

DIRECT: Mapping[str, Handler] = {
    "/v1/embeddings": create_embeddings,
    **dict.fromkeys(("/v1/score", "/score"), create_scores),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), create_ranking),
}
"""Path to the handler of a POST to it, before FastAPI sees it (see `generation.py`)."""

_USAGE = PooledUsage(5, 5, CachedTokens(0))
_CREATED = 1_767_225_600

_embeddings = Operation(
    "Make texts into vectors",
    EmbeddingList(
        id="embd-1",
        created=_CREATED,
        model="sql@2",
        data=[Embedding(index=0, embedding=[0.6, -0.8])],
        usage=_USAGE,
    ),
    body=EmbeddingRequest,
    examples={
        "Texts": {"model": "sql", "input": ["SELECT name", "FROM users"]},
        "Mean of a text's tokens": {"input": "SELECT name", "pooling": "mean", "encoding_format": "base64"},
    },
    errors=(404, 429),
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
_score = Operation(
    "Compare texts",
    ScoreList(id="score-1", created=_CREATED, model="sql@2", data=[PairScore(index=0, score=0.92)], usage=_USAGE),
    body=ScoreRequest,
    examples={"One with many": {"model": "sql", "text_1": "all names", "text_2": ["SELECT name", "DROP TABLE users"]}},
    errors=(404, 429),
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)
_rerank = Operation(
    "Put documents into the order of their likeness",
    Ranking(
        id="rerank-1",
        model="sql@2",
        results=[Ranked(index=1, document=Document("SELECT name"), relevance_score=0.92)],
        usage=_USAGE,
    ),
    body=RerankRequest,
    examples={"Best of two": {"query": "all names", "documents": ["DROP TABLE users", "SELECT name"], "top_n": 1}},
    errors=(404, 429),
    headers=HEADERS,
    optional_headers=OF_ROUTES,
)


@router.post("/v1/embeddings")
@_embeddings
async def embeddings(request: Request, services: ServicesOf) -> Response:
    """Return one vector for each text: hidden states of the base or of an adapter, behind the last norm."""
    return await create_embeddings(request, services)


@router.post("/v1/score")
@_score
async def create_score(request: Request, services: ServicesOf) -> Response:
    """Return how like texts are, by the cosine of their vectors."""
    return await create_scores(request, services)


@router.post("/score")
@_score
async def score_as_vllm(request: Request, services: ServicesOf) -> Response:
    """Do what `/v1/score` does, under vLLM's path."""
    return await create_scores(request, services)


@router.post("/v1/rerank")
@_rerank
async def create_rerank(request: Request, services: ServicesOf) -> Response:
    """Return documents in the order of their likeness to a query, by the cosine of their vectors."""
    return await create_ranking(request, services)


@router.post("/rerank")
@_rerank
async def rerank_as_vllm(request: Request, services: ServicesOf) -> Response:
    """Do what `/v1/rerank` does, under vLLM's path."""
    return await create_ranking(request, services)


@router.post("/v2/rerank")
@_rerank
async def rerank_as_cohere(request: Request, services: ServicesOf) -> Response:
    """Do what `/v1/rerank` does, under Cohere's path."""
    return await create_ranking(request, services)
