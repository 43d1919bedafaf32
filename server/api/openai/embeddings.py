"""POST /v1/embeddings, as OpenAI has it, with vLLM's extra fields."""

import base64
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from fastapi import Request, Response

from ..http.bodies import read_json
from ..http.errors import bad_request
from ..services import Services
from ..text.tokenizer import Tokenizer
from .answers import new_id
from .chat import last_words, render
from .completion_request import PromptInput
from .embedding_request import EmbeddingRequest
from .generation import Turns
from .planning import judged_text
from .pooled import Array, Vectors, answer_pooled, plan_pooled
from .responses import Answered, Created, PooledUsage

NUMBERS_SENT = 10  # of a vector that become text, in a microsecond


class Embedding(msgspec.Struct, kw_only=True):
    """One vector: numbers, or with `encoding_format: base64` the bytes of its float32 in little-endian."""

    index: Annotated[int, msgspec.Meta(description="Number of the input, from 0.")]
    embedding: list[float] | str
    object: Literal["embedding"] = "embedding"


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The vectors of all inputs, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: Created
    model: Answered
    data: list[Embedding]
    usage: PooledUsage


class _Sent(EmbeddingList, kw_only=True):
    """The same with its vectors encoded one by one, so that many of them do not stall other requests."""

    data: list[msgspec.Raw]  # type: ignore[assignment]


async def create_embeddings(request: Request, services: Services) -> Response:
    body = await read_json(request, EmbeddingRequest)
    width = services.model().hidden_size
    if width and body.dimensions not in (None, width):
        raise bad_request(f"dimensions: this model's vectors have {width}, and are not cut.", "dimensions")
    plan = await plan_pooled(
        services,
        request,
        body,
        lambda: _judged(services, body),
        lambda tokenizer: _prompts(tokenizer, body),
        add_special_tokens=body.messages is None,  # a template writes its own
    )
    return await answer_pooled(services, request, plan, lambda vectors: _listed(body, vectors))


def _judged(services: Services, body: EmbeddingRequest) -> str:
    if body.messages is not None:
        return last_words(body.messages)
    return judged_text(services.model(), services.tokenizer(), (body.input or [""])[0])


async def _prompts(tokenizer: Tokenizer, body: EmbeddingRequest) -> Sequence[PromptInput]:
    return body.input or [] if body.messages is None else [await render(tokenizer, body.messages, body)]


async def _listed(body: EmbeddingRequest, vectors: Vectors) -> msgspec.Struct:
    turns, data = Turns(), []
    for index, vector in enumerate(vectors.values):
        await turns.spend(1 + len(vector) // NUMBERS_SENT)
        data.append(msgspec.Raw(msgspec.json.encode(_embedding(index, vector, body.encoding_format == "base64"))))
    id_, created = new_id("embd", body.request_id)
    return _Sent(id=id_, created=created, model=vectors.plan.resolved.model, data=data, usage=vectors.usage)


def _embedding(index: int, vector: Array, is_base64: bool) -> Embedding:
    if is_base64:
        return Embedding(index=index, embedding=base64.b64encode(vector.astype(np.dtype("<f4")).tobytes()).decode())
    return Embedding(index=index, embedding=vector.tolist())
