"""Which adapters, which task and how many tokens a request of either route gets. Prompts are 20 tokens."""

import asyncio
import threading

import pytest

from peftserve.server.api.text.tokenizer import Tokenizer

PROMPT = [5] * 20
MATCH = '{"kind": "match", "threshold": 0, "candidates": [{"target": "sql", "examples": ["select"]}]}'


@pytest.fixture(params=["completions", "chat/completions"])
def ask(server, request):
    """POST to the route of either kind, with a prompt of its own."""

    async def post(**fields):
        prompt = {"prompt": PROMPT} if request.param == "completions" else {"messages": _messages("hi")}
        return await server.http.post(f"/v1/{request.param}", json={"max_tokens": 2, **prompt, **fields})

    return post


def _messages(text):
    return [{"role": "user", "content": text}]


@pytest.fixture
def add(server, engine):
    """Upload an adapter with these facts; its digest."""
    ranks = iter(range(1, 64))

    async def upload(name, **facts):
        engine.facts = facts
        response = await server.upload(name, rank=next(ranks))
        return response.json()["digest"]

    return upload


def _parts(engine):
    return [(part.digest, part.weight, part.task) for part in engine.requests[-1].adapters]


async def test_a_task_travels_with_the_adapter(ask, add, engine):
    poly, lora = await add("poly", num_tasks=3), await add("lora")
    for task in (0, 2):
        assert (await ask(model="poly", task_id=task)).status_code == 200
        assert _parts(engine) == [(poly, 1.0, task)]
    mixture = [{"name": "lora", "weight": 0.5}, {"name": "poly", "weight": 0.25}]
    assert (await ask(adapters=mixture, task_id=1)).status_code == 200
    assert _parts(engine) == [(lora, 0.5, 0), (poly, 0.25, 1)]
    assert (await ask(model="lora", task_id=None)).status_code == 200
    assert _parts(engine) == [(lora, 1.0, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "poly"}, "poly@1 has 3 tasks: give one of 0 to 2"),
        ({"model": "poly", "task_id": 3}, "poly@1 has 3 tasks: give one of 0 to 2"),
        ({"model": "lora", "task_id": 0}, "lora@1 has no tasks: leave task_id out"),
        ({"model": "base", "task_id": 0}, "base has no tasks: leave task_id out"),
        ({"task_id": 0}, "base has no tasks: leave task_id out"),
        ({"model": "poly", "task_id": -1}, "greater than or equal to 0"),
        ({"model": "poly", "task_id": "x"}, "integer"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_task_that_is_missing_or_wrong_is_refused(ask, add, engine, check_envelope, fields, message, stream):
    await add("poly", num_tasks=3)
    await add("lora")
    error = check_envelope(await ask(stream=stream, **fields), 400)
    assert message in error["message"]
    assert error["param"] == "task_id"
    assert engine.requests == []


async def test_a_refused_task_holds_nothing(ask, add, server):
    digest = await add("poly", num_tasks=3)
    await ask(model="poly", task_id=3)
    assert server.services.adapters.leases.count(digest) == server.services.admission.in_flight == 0


async def test_a_route_that_only_names_a_model_needs_no_task(add, server):
    await add("poly", num_tasks=3)
    assert (await server.http.post("/tokenize", json={"model": "poly", "prompt": "a"})).status_code == 200
    assert (await server.http.get("/v1/models/poly")).status_code == 200


async def test_mixtures_that_are_no_sum_are_refused(ask, add, engine, check_envelope):
    await add("a", exclusive=["DoRA"], outputs=["model.layers.*.mlp.down_proj"])
    await add("b", exclusive=["DoRA"])
    await add("c", inputs=["model.layers.*.mlp.down_proj"])
    await add("p", primitives={"kv_prefix": 1}, virtual_tokens=5)
    for names, message in (
        ("ab", "two DoRA adapters, a@1 and b@1, cannot be mixed: each rescales what the other changed"),
        ("ca", "c@1 and a@1 cannot be mixed: the one changes the input of model.layers.*.mlp.down_proj"),
        ("bp", "p@1 has a KV prefix and cannot be mixed"),
        ("p", "p@1 has a KV prefix, which no weight scales: its weight can only be 1"),
    ):
        error = check_envelope(await ask(adapters=[{"name": name, "weight": 0.5} for name in names]), 400)
        assert error["message"].startswith(message)
        assert error["param"] == "adapters"
    assert engine.requests == []
    assert (await ask(adapters=[{"name": "p"}])).status_code == 200
    assert (await ask(adapters=[{"name": "b"}, {"name": "c"}])).status_code == 200


async def test_virtual_tokens_take_room_but_are_no_prompt_tokens(server, add, check_envelope):
    await add("p", primitives={"kv_prefix": 1}, virtual_tokens=100)  # of 128

    async def complete(**fields):
        return await server.http.post("/v1/completions", json={"model": "p", "prompt": PROMPT, **fields})

    usage = (await complete(max_tokens=8)).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (20, 8, 28)
    assert (await complete()).json()["usage"]["completion_tokens"] == 8
    assert (await complete(model="base", max_tokens=9)).status_code == 200
    error = check_envelope(await complete(max_tokens=9), 400, "context_length_exceeded")
    assert (
        "you requested 129 tokens (20 in the prompt, 100 of the adapter's own, 9 in the completion)" in error["message"]
    )
    assert error["param"] == "prompt"


async def test_virtual_tokens_shorten_a_chat_s_answer(server, add):
    await add("p", primitives={"kv_prefix": 1}, virtual_tokens=30)
    answer = await server.http.post("/v1/chat/completions", json={"model": "p", "messages": _messages("hi")})
    assert answer.json()["usage"]["total_tokens"] == 98


async def test_the_default_adapter_s_virtual_tokens_count(server, add):
    await add("p", primitives={"kv_prefix": 1}, virtual_tokens=120)
    await server.http.put("/v1/default-adapter", json={"adapter": "p"})
    assert (await server.http.post("/v1/completions", json={"prompt": PROMPT})).status_code == 400
    assert (
        await server.http.post("/v1/completions", json={"prompt": [5] * 8, "max_tokens": 0, "echo": True})
    ).is_success


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("completions", {"prompt": "x" * 3_000_000}),
        ("completions", {"prompt": "x" * 3_000_000, "echo": True, "max_tokens": 0}),
        ("completions", {"prompt": ["short"] * 9 + ["the " * 1000]}),
        ("completions", {"prompt": [[5] * 20, [5] * 129]}),
        ("chat/completions", {"messages": _messages("x" * 3_000_000)}),
        ("chat/completions", {"messages": _messages("the ") * 1000}),
    ],
)
async def test_what_cannot_fit_is_refused_before_it_is_encoded(server, monkeypatch, path, fields, check_envelope):
    monkeypatch.setattr(Tokenizer, "_encode", lambda *_: pytest.fail("encoded"))
    error = check_envelope(await server.http.post(f"/v1/{path}", json=fields), 400, "context_length_exceeded")
    assert error["message"].startswith("This model's maximum context length is 128 tokens. However, a prompt has ")
    assert error["param"] == "prompt"


async def test_a_short_request_is_answered_while_a_long_text_is_encoded(server, monkeypatch):
    """The long text waits for the short request: were it encoded on the loop, neither would end."""
    answered, encode = threading.Event(), Tokenizer._encode

    def slow(tokenizer, texts, add_special_tokens):
        assert len(texts[0]) < 100 or answered.wait(60)
        return encode(tokenizer, texts, add_special_tokens)

    monkeypatch.setattr(Tokenizer, "_encode", slow)
    long = asyncio.create_task(server.http.post("/tokenize", json={"prompt": "the quick " * 20_000}))
    middle = asyncio.create_task(server.http.post("/v1/completions", json={"prompt": ["fox " * 30] * 200}))
    await asyncio.sleep(0.05)
    short = await server.http.post("/v1/completions", json={"prompt": "fox", "max_tokens": 2})
    assert (short.status_code, long.done(), middle.done()) == (200, False, False)
    answered.set()
    assert (await long).json()["count"] > 20_000
    assert (await middle).status_code in (200, 400)  # read, and then too many at once


@pytest.mark.parametrize(("path", "field"), [("completions", "prompt"), ("embeddings", "input")])
@pytest.mark.parametrize("ids", [[-1], [1 << 31], [[5], [1 << 70]]])
async def test_ids_that_no_vocabulary_has_reach_no_route(server, add, check_envelope, path, field, ids):
    await add("sql")
    server.services.owned.routes.put("auto", MATCH)
    error = check_envelope(await server.http.post(f"/v1/{path}", json={"model": "auto", field: ids}), 400)
    assert error["param"] == field
    assert "token id" in error["message"]


async def test_of_token_ids_a_route_judges_as_many_as_may_fit(server, add, monkeypatch, check_envelope):
    await add("sql")
    server.services.owned.routes.put("auto", MATCH)
    decode, decoded = Tokenizer.decode, []
    monkeypatch.setattr(
        Tokenizer, "decode", lambda self, ids, *skip: decoded.append(len(ids)) or decode(self, ids, *skip)
    )
    for path, field in [("completions", "prompt"), ("embeddings", "input")]:
        response = await server.http.post(f"/v1/{path}", json={"model": "auto", field: [5] * 1000})
        check_envelope(response, 400, "context_length_exceeded")
    assert decoded == [128, 128]
