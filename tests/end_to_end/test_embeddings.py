"""Vectors of texts by a real server and OpenAI's own client: the last hidden states that PEFT gives by itself."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

PROMPTS = [[7, 250, 31, 90, 44], [(11 * i) % 290 + 3 for i in range(70)], [5], [200, 201, 18, 77, 9, 10]]


async def test_every_adapter_and_mixture_has_its_own_vectors(world: Any, serve: Callable[..., Any]) -> None:
    """Side by side with completions of the same prompts, whose pages they share."""
    reference, adapters, name = world.reference, world.adapters, world.model.name
    server = serve("--max-batch-tokens", "48")
    for adapter in adapters:
        assert server.upload(adapter.name, adapter).status_code == 201
    mixture = ((adapters[0], 0.7), (adapters[1], -0.4))
    members = [{"name": adapter.name, "weight": weight} for adapter, weight in mixture]
    asked: list[tuple[dict[str, Any], Any]] = [
        ({"model": name}, ()),
        *(({"model": adapter.name}, ((adapter, 1.0),)) for adapter in adapters),
        ({"model": "default", "extra_body": {"adapters": members}}, mixture),
    ]
    async with world.connect(server) as client:
        embed = client.official.embeddings.create
        plain = [embed(input=PROMPTS, **fields) for fields, _ in asked]
        busy = [
            client.complete({"model": name, "prompt": p, "max_tokens": 8, "return_token_ids": True}) for p in PROMPTS
        ]
        answers = (await asyncio.gather(*plain, *busy))[: len(plain)]
        unscaled = {"pooling": "mean", "normalize": False}
        [mean] = (await embed(input=PROMPTS[1], model=name, extra_body=unscaled)).data
    for (fields, parts), answer in zip(asked, answers, strict=True):
        for prompt, item in zip(PROMPTS, answer.data, strict=True):
            expected = reference.hidden_states(prompt, parts)[-1][-1].numpy()
            expected /= np.linalg.norm(expected)
            np.testing.assert_allclose(item.embedding, expected, atol=2e-5, err_msg=str(fields))
        assert answer.usage.prompt_tokens == sum(map(len, PROMPTS))
    expected = reference.hidden_states(PROMPTS[1])[-1].mean(0).numpy()
    np.testing.assert_allclose(mean.embedding, expected, atol=2e-5 * np.abs(expected).max())
