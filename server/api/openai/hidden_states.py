"""The hidden states of texts, for routes that choose by them: the engine runs them in its batch.

A request's own text is run with its salt, so that its pages are those of its prompt where the prompt is nothing else.
An example that many requests wait for is run for all of them, and then the route keeps its vector.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from peftserve.adapters.routing.query import Query, Vector, VectorKey

from ...wire.messages import Pooling
from ..http.errors import bad_request
from ..services import Services
from .asking import asked_by

MAX_TOKENS = 1024  # of a text that are looked at


async def with_vectors(services: Services, query: Query, keys: Sequence[VectorKey], salt: str) -> Query:
    """Return the query with the mean hidden states that the router asks for. Raises ApiError, EngineDead."""
    vectors = await asyncio.gather(*(_vector(services, query, key, salt) for key in keys))
    return replace(query, vectors={**query.vectors, **dict(zip(keys, vectors, strict=True))})


async def _vector(services: Services, query: Query, key: VectorKey, salt: str) -> Vector:
    if key.text is not None:
        example = key.text
        return await services.examples.run(key, lambda: _states(services, example, key))  # whoever asked first pays
    services.admission.enter(1, services.tenant)
    try:
        return await _states(services, query.text(), key, salt)
    finally:
        services.admission.leave(1, services.tenant)


async def _states(services: Services, text: str, key: VectorKey, salt: str = "") -> Vector:
    tokens = (await _tokens(services, text, key.is_chat))[: min(MAX_TOKENS, services.model().max_model_len)]
    try:
        return await services.engine.embed(tokens, Pooling(layer=key.layer), salt=salt, **asked_by(services))
    except ValueError as error:  # a layer that the model has not, or a text without tokens
        raise bad_request(f"The route cannot compare texts by the base's hidden states: {error}", "model") from None


async def _tokens(services: Services, text: str, is_chat: bool) -> list[int]:
    tokenizer = services.tokenizer()
    if not is_chat:
        return await tokenizer.encode(text)
    chat = [{"role": "user", "content": text}]
    template = tokenizer.require_chat_template()
    rendered = await template.render(chat, add_generation_prompt=True, continue_final_message=False, arguments={})
    return await tokenizer.encode(rendered, add_special_tokens=False)
