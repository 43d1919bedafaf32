"""Routes that choose by the base's hidden states: what the engine is asked to run, how often, and in which form."""

import asyncio
import json
from collections import Counter

import pytest

from peftserve.server.api.engine.interface import EngineDead
from peftserve.server.api.tenancy.tenant import Tenant

CANDIDATES = [{"target": "sql", "examples": ["aaa", "ab"]}, {"target": "json", "keywords": ["zzz"]}]


class States:
    """The engine's hidden states: how many of a text's letters are an `a`, and a `z`.

    runs: tokens and salts. asked: by whom.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.runs = []
        self.asked = []
        self.error = None

    async def embed(self, prompt, pooling, adapters=(), salt="", **asked):
        self.runs.append((list(prompt), salt, pooling))
        self.asked.append(asked)
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        text = self.tokenizer.decode(list(prompt))
        return [float(text.count("a") - text.count("assistant")), float(text.count("z")), 1.0]

    def texts(self):
        return [self.tokenizer.decode(tokens, skip_special_tokens=False) for tokens, _, _ in self.runs]


@pytest.fixture
def states(engine, tokenizer):
    engine.embed = (found := States(tokenizer)).embed
    return found


@pytest.fixture
async def put(server, states):
    """Put the route `auto`, with these fields."""
    for rank, name in enumerate(("sql", "json"), 1):
        await server.upload(name, rank=rank)

    def put(**fields):
        body = {"kind": "match", "encoder": "base", "threshold": 0.5, "candidates": CANDIDATES, **fields}
        return server.services.owned.routes.put("auto", json.dumps(body))

    return put


async def complete(server, prompt, **fields):
    return await server.http.post(
        "/v1/completions", json={"model": "auto", "prompt": prompt, "max_tokens": 1, **fields}
    )


async def chat(server, *contents, **fields):
    messages = [{"role": "system" if i + 1 < len(contents) else "user", "content": c} for i, c in enumerate(contents)]
    body = {"model": "auto", "messages": messages, "max_tokens": 1, **fields}
    return await server.http.post("/v1/chat/completions", json=body)


async def test_the_nearest_answers_and_many_who_begin_together_share_the_examples(server, states, put):
    put(layer=3)
    answers = await asyncio.gather(*(complete(server, prompt) for prompt in ["aab", "zza"] * 8))
    assert [answer.json()["model"] for answer in answers] == ["sql@1", "json@1"] * 8
    runs = Counter(states.texts())
    assert (runs.pop("aab"), runs.pop("zza")) == (8, 8)
    assert {*runs} == {"aaa", "ab", "zzz"}
    assert max(runs.values()) < 16  # again where one asks between their end and the route's knowing of it
    assert {pooling.layer for _, _, pooling in states.runs} == {3}
    states.runs.clear()
    assert (await complete(server, "zz")).headers["x-peftserve-adapter"] == "json@1"
    assert states.texts() == ["zz"]


async def test_what_is_run_is_the_prompt_with_its_salt(server, engine, states, put):
    put()
    await complete(server, "aab", cache_salt="s")
    tokens, salt, _ = states.runs[0]
    assert (tokens, salt) == (engine.requests[-1].prompt_token_ids, engine.requests[-1].salt)
    assert {salt for _, salt, _ in states.runs[1:]} == {""}
    await chat(server, "zzb")
    assert engine.requests[-1].prompt_token_ids in [tokens for tokens, _, _ in states.runs]
    assert engine.requests[-1].adapters


async def test_it_is_run_for_the_tenant_that_asks(server, engine, states, put):
    put()
    await complete(server, "aab", priority=3)
    sent = engine.requests[-1]
    assert sent.tenant
    for asked in states.asked:
        assert (asked["tenant"], asked["weight"], asked["queue_timeout"]) == (
            sent.tenant,
            sent.weight,
            sent.queue_timeout,
        )


async def test_chats_are_judged_by_the_last_message_as_a_chat_and_so_are_the_examples(server, states, put):
    put()
    assert (await chat(server, "Be brief, always.", "zzb")).json()["model"] == "json@1"
    assert {*states.texts()} == {f"<s>user: {text}\nassistant: " for text in ("aaa", "ab", "zzz", "zzb")}


async def test_of_a_long_text_the_beginning_is_run(server, states, put, monkeypatch):
    monkeypatch.setattr("peftserve.server.api.openai.hidden_states.MAX_TOKENS", 5)
    put()
    assert (await complete(server, "z" * 20)).status_code == 200
    assert max(len(tokens) for tokens, _, _ in states.runs) == 5


async def test_an_empty_prompt_is_refused_as_ever(server, states, put, check_envelope):
    put()
    assert "prompt is empty" in check_envelope(await complete(server, ""), 400)["message"]
    assert states.runs == []


async def test_what_the_engine_refuses_is_the_clients_to_know(server, states, put, check_envelope):
    put(layer=99)
    states.error = ValueError("this model has 4 layers: there is no layer 99")
    assert "there is no layer 99" in check_envelope(await complete(server, "aab"), 400)["message"]
    states.error = EngineDead("killed at /secret/path")
    check_envelope(await complete(server, "aab"), 503)
    states.error = None
    assert (await complete(server, "aab")).json()["model"] == "sql@1"
    assert server.services.admission.in_flight == 0


async def test_a_full_server_runs_no_texts(server, states, put, check_envelope):
    put()
    await complete(server, "aab")
    states.runs.clear()
    admission = server.services.admission
    admission.enter(admission.capacity)
    for number in range(admission.capacity // admission.guaranteed):
        admission.enter(admission.guaranteed, Tenant(f"t{number}"))  # the places that others have beside it
    check_envelope(await complete(server, "aab"), 429, "queue_full")
    assert states.runs == []
