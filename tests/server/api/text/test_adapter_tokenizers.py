"""Adapters' own words through the server's routes, with an engine that repeats its prompt."""

import asyncio
import json

import numpy
import openai
import pytest
from safetensors.numpy import save
from tokenizers import AddedToken, Tokenizer

from peftserve.server.api.text import adapter_tokenizers

NEW = 450
MORE = 3


@pytest.fixture
def grown(tokenizer, engine):
    """The base's tokenizer with more tokens, and an engine that finds so many in adapters from now on."""
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_tokens([AddedToken("<call>", special=True), AddedToken("zebra"), AddedToken("<over>", special=True)])
    engine.facts = {"vocabulary": NEW}
    return own


async def _upload(server, name, **files):
    config = {"peft_type": "LORA", "r": 8, "target_modules": ["q_proj"]}
    weights = save({"w": numpy.array([*name.encode()], "f4")})
    content = {"adapter_config.json": json.dumps(config), "adapter_model.safetensors": weights, **files}
    parts = [("files", (file, data)) for file, data in content.items()]
    response = await server.http.post("/v1/adapters", data={"name": name}, files=parts)
    assert response.status_code in (200, 201), response.text


def _files(grown, **config):
    return {"tokenizer.json": grown.to_str(), "tokenizer_config.json": json.dumps(config)}


async def test_added_tokens_are_read_and_written_beside_the_base(server, grown, tokenizer, engine):
    await _upload(server, "words", **_files(grown))
    text = "the <call> zebra"
    own, plain = grown.encode(text).ids, tokenizer.encode(text).ids
    assert max(own) >= tokenizer.get_vocab_size() > max(plain)
    fields = {"prompt": text, "extra_body": {"skip_special_tokens": False}}
    answers = await asyncio.gather(
        *(server.openai.completions.create(model=m, max_tokens=len(own), **fields) for m in ("words", "base") * 4)
    )
    assert {r.choices[0].text for r in answers[::2]} == {text}
    assert {tuple(r.prompt_token_ids) for r in engine.requests} == {tuple(own), tuple(plain)}
    hidden = await server.openai.completions.create(model="words", prompt=text, max_tokens=len(own))
    assert hidden.choices[0].text == text.replace("<call>", "")
    post = server.http.post
    assert (await post("/tokenize", json={"model": "words", "prompt": text})).json()["tokens"] == own
    assert (await post("/tokenize", json={"model": "base", "prompt": text})).json()["tokens"] == plain
    assert (await post("/detokenize", json={"model": "words", "tokens": own})).json()["prompt"] == text
    assert (await post("/detokenize", json={"model": "words", "tokens": [NEW]})).status_code == 400
    assert (await post("/tokenize", json={"model": "nobody", "prompt": text})).status_code == 404


async def test_an_adapters_own_end_ends_its_answers_only(server, grown, engine):
    await _upload(server, "ends", **_files(grown, eos_token="<over>"))
    fields = {"prompt": "the fox<over>", "max_tokens": 30}
    own = await server.openai.completions.create(model="ends", **fields)
    assert engine.requests[-1].eos_token_ids == sorted({*engine.info.eos_token_ids, grown.token_to_id("<over>")})
    await server.openai.completions.create(model="base", **fields)
    assert engine.requests[-1].eos_token_ids is None
    assert own.model == "ends"


async def test_few_tokenizers_are_kept_and_those_alike_are_shared(server, grown, monkeypatch):
    monkeypatch.setattr(adapter_tokenizers, "MOST_KEPT", 1)
    for name in ("one", "two"):
        await _upload(server, name, **_files(grown))
    router, services = server.services.adapters.router, server.services
    first, second = [await services.tokenizer_of(router.alone(name)) for name in ("one", "two")]
    assert first is second is not services.tokenizer()
    grown.add_tokens(["more"])
    await _upload(server, "three", **_files(grown))
    third = await services.tokenizer_of(router.alone("three"))
    assert third.vocabulary().keys() - first.vocabulary().keys() == {"more"}
    assert await services.tokenizer_of(router.alone("one")) is not first
    await _upload(server, "plain")
    assert await services.tokenizer_of(router.alone("plain")) is services.tokenizer()


async def test_templates_of_adapters_are_rendered_where_they_are_allowed(make_server, engine):
    chat = {"messages": [{"role": "user", "content": "fox"}], "max_tokens": 30}
    for allowed in (False, True):
        async with make_server(adapter_templates=allowed, chat_template="base {{ messages[0].content }}") as server:
            if not allowed:
                await _upload(server, "own", **{"chat_template.jinja": "own {{ messages[0].content }}"})
                await _upload(server, "broken", **{"chat_template.jinja": "{% for %}"})
            for name, said in {"own": "own fox" if allowed else "base fox", "base": "base fox"}.items():
                answer = await server.openai.chat.completions.create(model=name, **chat)
                assert said in answer.choices[0].message.content
            if allowed:
                with pytest.raises(openai.BadRequestError, match="adapter's chat template"):
                    await server.openai.chat.completions.create(model="broken", **chat)
